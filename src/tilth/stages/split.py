"""Take a part of a corpus: parts that do not overlap, whatever the order of the rows."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.registry import Fraction


@method("stage", "split")
class Split(Stage):
    """The share [start, stop) of the rows of `data` (of those for which `where`, in SQL, is true), in the order of a hash of their ids.

    Two stages with adjoining shares of one corpus have no row in common and leave none out. Needs 8 bytes of memory a row.
    """

    gives = "corpus"
    seeded = False

    def __init__(self, *, data: CorpusRef, start: Fraction = 0.0, stop: Fraction = 1.0, where: str | None = None) -> None:
        if start >= stop:
            raise TilthError(f"'split' from {start} to {stop} is empty", hint="'start' must be below 'stop'.")
        self.data, self.start, self.stop, self.where = data, start, stop, where

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        corpus = context.corpus(self.data)
        corpus = corpus.filter(self.where) if self.where else corpus
        hashes = np.sort(np.concatenate([hashed(batch) for batch in corpus.scan(["id"])]))
        count = len(hashes)
        first, end = int(self.start * count), int(self.stop * count)
        if first == end:
            raise TilthError(f"{self.start} to {self.stop} of the {count} rows of '{self.data}' is none", hint="Widen the share.")

        def parts() -> Iterator[pa.RecordBatch]:
            for batch in corpus.scan():
                rank = np.searchsorted(hashes, hashed(batch))
                yield batch.filter(pa.array((rank >= first) & (rank < end)))

        part = Corpus.write(context.folder / "corpus.lance", parts(), corpus.schema, metadata={"kind": corpus.kind})
        return {"rows": float(part.count())}


def hashed(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """A 64-bit hash of each row's id."""
    names = batch["id"].to_pylist()
    return np.fromiter((xxhash.xxh64_intdigest(name.encode()) for name in names), dtype=np.uint64, count=batch.num_rows)
