"""Take a part of a corpus by a hash of the row's id: parts that do not overlap, whatever the order or the version."""

import numpy as np
import pyarrow as pa
import xxhash

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.registry import Fraction


@method("stage", "split")
class Split(Stage):
    """Rows of `data` whose id hashes into [start, stop) of [0, 1). Two stages with adjoining intervals share no row."""

    gives = "corpus"
    seeded = False

    def __init__(self, *, data: CorpusRef, start: Fraction = 0.0, stop: Fraction = 1.0) -> None:
        if start >= stop:
            raise TilthError(f"'split' from {start} to {stop} is empty", hint="'start' must be below 'stop'.")
        self.data, self.start, self.stop = data, start, stop

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        corpus = context.corpus(self.data)

        def parts() -> "pa.RecordBatch":
            for batch in corpus.scan():
                share = (
                    np.array([xxhash.xxh64_intdigest(identity) for identity in batch["id"].to_pylist()], dtype=np.uint64) / 2**64
                )
                yield batch.filter(pa.array((share >= self.start) & (share < self.stop)))

        part = Corpus.write(context.folder / "corpus.lance", parts(), corpus.schema, metadata={"kind": corpus.kind})
        rows = part.count()
        if not rows:
            raise TilthError(f"no row of '{self.data}' falls into [{self.start}, {self.stop})", hint="Widen the interval.")
        return {"rows": float(rows)}
