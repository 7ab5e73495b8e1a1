"""Exact duplicate removal: of equal texts the first is kept.

Notable: texts are compared by two independent 64-bit hashes, so 16 bytes per document are collected and no text.
"""

import daft
import numpy as np
import pyarrow as pa
from daft import col
from daft.functions import hash

from tilth.contracts import Step, method
from tilth.curate.frames import KEY, Verdicts, apply, collect_kept, text_column


@method("curate", "exact_dedup")
class ExactDedup(Step):
    """Keeps the first, in row order, of all documents whose text is equal byte for byte; null is equal to nothing.

    Equal means two equal 64-bit hashes: among a thousand million documents a mistake has a probability below 1e-20.
    """

    def __init__(self, *, column: str = "text") -> None:
        self.column = column
        self.verdicts: Verdicts | None = None

    def fit(self, frame: daft.DataFrame) -> None:
        """Find the duplicates among the rows still kept."""
        text = text_column(frame, self.column, self.name)
        hashes = {"one": hash(text, seed=1), "other": hash(text, seed=2)}
        found = collect_kept(frame.where(text.not_null()), id=col("id"), **hashes)
        one, other = found["one"].to_numpy(), found["other"].to_numpy()
        order = np.lexsort((other, one))  # stable: row order within equal texts
        same = (one[order[1:]] == one[order[:-1]]) & (other[order[1:]] == other[order[:-1]])
        repeated = np.concatenate([[False], same]) if len(order) else same
        first = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(order))))  # where each run of equals begins
        rows, kept = order[repeated], order[first[repeated]]
        keys, ids = found[KEY].to_numpy(), found["id"]
        self.verdicts = Verdicts.of(keys[rows], f"{self.name}: same text as ", ids.take(pa.array(kept)))

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        return apply(self.verdicts, frame, self.name)
