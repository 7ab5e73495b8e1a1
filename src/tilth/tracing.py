"""Which training read which rows, and which checkpoint is the last one clean of them: computed, not logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.run import context_of, read_run
from tilth.stages.pretrain import Pretrain
from tilth.training.checkpoints import checkpoints
from tilth.training.lineage import Lineage, numbered, seen


def trace_run(folder: Path, where: str, limit: int) -> list[dict[str, Any]]:
    """For every training stage of a run and every row its data has `where`: when the row was read.

    One dict per stage and row: stage, row (id), times, first_step, last_step, clean_checkpoint (step of the newest kept
    checkpoint made before the first reading; None without one). Rows that a stage's data lacks are not listed.
    """
    found: list[dict[str, Any]] = []
    unfit: TilthError | None = None
    stages = [entry for entry in read_run(folder)["stages"] if entry["kind"] == "pretrain"]
    if not stages:
        raise TilthError("no stage of this run has trained anything", where=str(folder))
    for entry in stages:
        try:
            found += _trace_stage(folder, entry["name"], where, limit)
        except TilthError as error:  # another stage's data may have the columns this one's lacks
            unfit = error
    if not found and unfit:
        raise unfit
    if not found:
        raise TilthError(f"no training stage has read a row where {where}", where=str(folder))
    return found


def _trace_stage(folder: Path, name: str, where: str, limit: int) -> list[dict[str, Any]]:
    configured, context = context_of(folder, name)
    stage: Pretrain = configured.build()
    rows, ids = rows_where(context.corpus(stage.data), where, limit)
    if not ids:
        return []
    examples = stage.examples(context, stage.model(context).tokenizer)
    lineage = Lineage.read(context.folder)
    kept = [step for step, _ in checkpoints(context.folder)]
    found = []
    for identity, one in zip(ids, seen(lineage, examples, rows), strict=True):
        clean = [step for step in kept if one.first is None or step < one.first]
        found.append(
            {
                "stage": name,
                "row": identity,
                "times": len(one.steps),
                "first_step": one.first,
                "last_step": int(one.steps[-1]) if len(one.steps) else None,
                "steps": one.steps.tolist(),
                "clean_checkpoint": max(clean, default=None),
            }
        )
    return found


def rows_where(corpus: Corpus, where: str, limit: int) -> tuple[list[int], list[str]]:
    """Numbers (in this view of the corpus) and ids of the first `limit` rows `where` the predicate holds."""
    return numbered(corpus, corpus.filter(where).table(["id"])["id"].slice(0, limit))
