"""Which training read which rows, and which checkpoint is the last one clean of them: computed, not logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilth.errors import TilthError
from tilth.run import read_run


def trace_run(folder: Path, where: str, limit: int) -> list[dict[str, Any]]:
    """For every training stage of a run and every row its data has `where`: when the row was read.

    One dict per stage and row: stage, row (id), times, first_step, last_step, clean_checkpoint (step of the newest kept
    checkpoint made before the first reading; None without one). Rows that a stage's data lacks are not listed.
    """
    found: list[dict[str, Any]] = []
    stages = [entry for entry in read_run(folder)["stages"] if (Path(entry["folder"]) / "lineage.json").exists()]
    if not stages:
        raise TilthError("no stage of this run has trained anything", where=str(folder))
    for entry in stages:
        found += _trace_stage(folder, entry["name"], where, limit)
    if not found:
        raise TilthError(f"no training stage has read a row where {where}", where=str(folder))
    return found
