"""A corpus that exists already, read as a source: to copy it, or a filtered view's columns under other names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tilth.corpus.readers.base import PLACE, Reader
from tilth.corpus.skipped import SkipList
from tilth.corpus.table import Corpus
from tilth.registry import PositiveInt, method


@method("reader", "lance")
class Lance(Reader):
    """A corpus written by Tilth, or any Lance table with a string column `id`."""

    def __init__(self, path: str | Path, /, *, batch_rows: PositiveInt = 1024) -> None:
        super().__init__(path)
        self.corpus, self.batch_rows = Corpus.open(path), batch_rows

    def schema(self) -> pa.Schema:
        return self.corpus.schema.insert(0, pa.field(PLACE, pa.string()))

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        for batch in self.corpus.scan(batch_size=self.batch_rows):
            yield pa.RecordBatch.from_arrays([batch.column("id"), *batch.columns], schema=self.schema())
