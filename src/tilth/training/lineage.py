"""Which rows a model saw at which step: computed from a handful of numbers, not logged.

Notable: `lineage.json`, written before the first step, holds everything that decides the order; a checkpoint of step k has
seen exactly the steps 1 ... k, so the last one clean of some rows is arithmetic too.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tilth.batches.order import Order
from tilth.contracts import Examples
from tilth.corpus import Corpus
from tilth.errors import TilthError

_SCAN = 8192


@dataclass(frozen=True)
class Lineage:
    """count: examples. seed: of the order. Step s (from 1) draws positions (s - 1) * per_step ... s * per_step - 1.

    world: processes. steps: how many the whole run takes.
    """

    count: int
    seed: int
    batch_size: int
    accumulate: int
    world: int
    steps: int

    @property
    def per_step(self) -> int:
        """Examples per step."""
        return self.batch_size * self.accumulate * self.world

    def examples(self, step: int) -> NDArray[np.int64]:
        """Example numbers drawn in step `step` (from 1)."""
        return Order(self.count, self.seed).indices((step - 1) * self.per_step, step * self.per_step)

    @classmethod
    def read(cls, folder: Path) -> Lineage:
        """From the folder of a run of `fit`. TilthError when nothing was trained there."""
        path = folder / "lineage.json"
        if not path.exists():
            raise TilthError("no model was trained in this folder", where=str(folder), hint="It has no lineage.json.")
        said = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: said[name] for name in cls.__dataclass_fields__})

    def plain(self) -> dict[str, int]:
        """As in lineage.json."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """A corpus row and the steps (from 1, ascending) in which an example made from it was drawn."""

    row: int
    steps: NDArray[np.int64]

    @property
    def first(self) -> int | None:
        """The first of the steps; None when the row was never drawn."""
        return int(self.steps[0]) if len(self.steps) else None


def seen(lineage: Lineage, examples: Examples, rows: Collection[int], until: int | None = None) -> list[Seen]:
    """For each corpus row, in the order given, when it was trained on, in the steps up to `until` (default: all)."""
    wanted = np.fromiter(rows, dtype=np.int64, count=len(rows))
    example, row = examples_of(examples, wanted)
    stop = (lineage.steps if until is None else until) * lineage.per_step
    order = Order(lineage.count, lineage.seed)
    return [
        Seen(int(one), np.unique(order.positions(example[row == one], stop) // lineage.per_step) + 1)
        for one in wanted
    ]  # fmt: skip


def examples_of(examples: Examples, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (example number, corpus row) for every example made from one of the rows."""
    found_examples, found_rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(examples), _SCAN):
        indices = np.arange(start, min(start + _SCAN, len(examples)))
        made_from = examples.rows(indices)
        flat = np.concatenate(made_from) if made_from else np.empty(0, np.int64)
        hit = np.isin(flat, rows)
        found_examples.append(np.repeat(indices, [len(part) for part in made_from])[hit])
        found_rows.append(flat[hit].astype(np.int64))
    return np.concatenate(found_examples), np.concatenate(found_rows)


def last_clean_checkpoint(folder: Path, examples: Examples, rows: Collection[int]) -> Path | None:
    """The newest whole checkpoint in `folder` that saw none of the rows; None when there is none: train anew without them."""
    from tilth.training.checkpoints import checkpoints

    firsts = [one.first for one in seen(Lineage.read(folder), examples, rows) if one.first is not None]
    clean = min(firsts) - 1 if firsts else None
    return next((path for step, path in checkpoints(folder) if clean is None or step <= clean), None)


def numbered(corpus: Corpus, ids: pa.ChunkedArray) -> tuple[list[int], list[str]]:
    """Numbers (in this view of the corpus, which is streamed) of the rows that have one of `ids`, in order, and those ids."""
    rows: list[int] = []
    found: list[str] = []
    start = 0
    for batch in corpus.scan(["id"]):
        hits = np.flatnonzero(pc.is_in(batch["id"], value_set=ids).to_numpy(zero_copy_only=False))
        rows += (start + hits).tolist()
        found += batch["id"].take(hits).to_pylist()
        start += batch.num_rows
    return rows, found
