"""Near-duplicate removal: MinHash signatures, banding, one document kept of each connected component.

Notable: signatures are computed where the plan runs (all cores, or a Ray cluster); signatures alone, 4 bytes x bands x
rows per document, are collected, and `lsh` bands them in this process as one array.
"""

import daft
import numpy as np
import pyarrow as pa
from daft import col
from daft.functions import minhash

from tilth.contracts import Step, method
from tilth.curate.frames import KEY, Verdicts, apply, collect_kept, text_column
from tilth.curate.lsh import duplicates
from tilth.curate.shingles import Unit, spaced
from tilth.registry import Fraction, NonNegativeInt, PositiveInt

_EMPTY = np.uint32(0xFFFFFFFF)  # every value of the signature of a text without shingles


@method("curate", "near_dedup")
class NearDedup(Step):
    """Keeps the first document, in row order, of each group of near-duplicates.

    Two documents of Jaccard similarity s (of their sets of shingles) become candidates with probability
    1 - (1 - s**rows)**bands: half of them at s = 0.71 with 14 bands of 8 rows. Groups are the connected components of
    candidates, so that two members need not resemble each other directly; the reason names the kept document and the
    estimated similarity with it. Texts without a shingle (empty, null) are left to other steps.

    unit: what a shingle is made of: 'word', 'token' (for code) or 'character'; size: how many. A text of fewer is one
    shingle. lowercase, punctuation: False for the latter ignores ASCII punctuation. threshold: unite candidates only
    if their estimated similarity reaches it (standard error sqrt(s * (1 - s) / (bands * rows))); null: unite all.
    seed: of the hash functions; null: the run's.
    """

    def __init__(
        self,
        *,
        column: str = "text",
        unit: Unit = "word",
        size: PositiveInt = 5,
        bands: PositiveInt = 14,
        rows: PositiveInt = 8,
        threshold: Fraction | None = None,
        lowercase: bool = True,
        punctuation: bool = False,
        seed: NonNegativeInt | None = None,
    ) -> None:
        self.column, self.unit, self.size, self.bands, self.rows = column, unit, size, bands, rows
        self.threshold, self.lowercase, self.punctuation, self.seed = threshold, lowercase, punctuation, seed
        self.verdicts: Verdicts | None = None

    def signature(self, text: daft.Expression) -> daft.Expression:
        """The MinHash of a text: uint32 (bands * rows,); of two texts each value is equal with probability s."""
        units = spaced(text, self.unit, lowercase=self.lowercase, punctuation=self.punctuation)
        return minhash(
            units, num_hashes=self.bands * self.rows, ngram_size=self.size, seed=1 + (self.seed or 0), hash_function="xxhash64"
        )

    def fit(self, frame: daft.DataFrame) -> None:
        """Find the duplicates among the rows still kept."""
        text = text_column(frame, self.column, self.name)
        found = collect_kept(frame.where(text.not_null()), id=col("id"), signature=self.signature(text))
        signatures = found["signature"].flatten().to_numpy().reshape(-1, self.bands * self.rows)
        some = np.flatnonzero((signatures != _EMPTY).any(axis=1))
        if len(some) < len(signatures):
            signatures = signatures[some]
        twins = duplicates(signatures, bands=self.bands, threshold=self.threshold)
        keys, ids = found[KEY].to_numpy(), found["id"]
        kept = ids.take(pa.array(some[twins.kept]))
        self.verdicts = Verdicts.of(keys[some[twins.rows]], f"{self.name}: duplicates ", kept, _as_text(twins.similarity))

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        return apply(self.verdicts, frame, self.name)


def _as_text(similarity: np.ndarray) -> pa.Array:
    """' (similarity 0.93)' for each number."""
    shown = pa.array([f" (similarity {hundredth / 100:.2f})" for hundredth in range(101)], pa.large_string())
    return shown.take(pa.array(np.rint(similarity * 100).astype(np.int64)))
