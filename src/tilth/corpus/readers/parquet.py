"""Parquet, a file or a folder of files, read row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tilth.corpus.columns import fit
from tilth.corpus.readers.base import PLACE, places
from tilth.corpus.readers.tables import Tables
from tilth.corpus.skipped import SkipList
from tilth.registry import PositiveInt, method


@method("reader", "parquet")
class Parquet(Tables):
    """Parquet files. Files that are not Parquet are listed, and row groups that are damaged; the rest is kept."""

    suffixes = (".parquet", ".pq")

    def __init__(self, path: str | Path, /, *, batch_rows: PositiveInt = 1024) -> None:
        super().__init__(path)
        self.batch_rows = batch_rows

    def file_schema(self, path: Path, *, whole: bool) -> pa.Schema | None:
        try:
            return pq.read_schema(path).remove_metadata()
        except (pa.ArrowException, OSError):
            return None  # file_batches lists it

    def file_batches(self, path: Path, name: str, schema: pa.Schema, skip: SkipList) -> Iterator[pa.RecordBatch]:
        try:
            if not path.stat().st_size:
                skip(name, "an empty file")
                return
            file = pq.ParquetFile(path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            skip(name, f"cannot be read as Parquet: {str(error).splitlines()[0]}")
            return
        with file:
            end = 0
            for group in range(file.metadata.num_row_groups):
                row, end = end, end + file.metadata.row_group(group).num_rows
                try:
                    for batch in file.iter_batches(self.batch_rows, row_groups=[group], use_threads=False):
                        place = places(name, "#", range(row, row + batch.num_rows))
                        row += batch.num_rows
                        yield fit(pa.RecordBatch.from_arrays([place, *batch.columns], [PLACE, *batch.schema.names]), schema)
                except (pa.ArrowException, OSError) as error:
                    skip(f"{name}#{row}", f"rows {row} to {end - 1} cannot be read: {str(error).splitlines()[0]}")
