"""A Lance table as a lazy Daft frame: one task per fragment, columns and predicate pushed down to Lance.

Notable: Daft's own `read_lance` needs a further package; this is its public DataSource contract, and unlike `read_lance` it
keeps the version and predicate that the corpus was opened with. Tasks hold only names, so Ray workers read for themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import daft
import lance
import pyarrow as pa
from daft.io.pushdowns import Pushdowns
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch
from daft.schema import Schema


@dataclass
class FragmentTask(DataSourceTask):
    """Reads the rows of one fragment that meet the predicate, batch by batch."""

    uri: str
    version: int
    where: str | None
    fragment: int
    columns: list[str]
    arrow: pa.Schema

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(self.arrow)

    async def read(self) -> AsyncIterator[RecordBatch]:
        dataset = lance.dataset(self.uri, version=self.version)
        scanner = dataset.scanner(
            columns=self.columns,
            filter=self.where,
            fragments=[fragment for fragment in dataset.get_fragments() if fragment.fragment_id == self.fragment],
            batch_size=2048,
            batch_readahead=2,
            io_buffer_size=128 * 2**20,
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield RecordBatch.from_arrow_record_batches([batch], batch.schema)


@dataclass
class LanceSource(DataSource):
    """The view of a corpus: table, version, predicate."""

    uri: str
    version: int
    where: str | None
    arrow: pa.Schema
    fragments: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"corpus {self.uri}"

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(self.arrow)

    async def get_tasks(self, pushdowns: Pushdowns) -> AsyncIterator[DataSourceTask]:
        wanted = set(pushdowns.columns if pushdowns.columns is not None else self.arrow.names)
        wanted |= pushdowns.filter_required_column_names()
        columns = [name for name in self.arrow.names if name in wanted] or self.arrow.names[:1]
        arrow = pa.schema([self.arrow.field(name) for name in columns])
        for fragment in self.fragments:
            yield FragmentTask(self.uri, self.version, self.where, fragment, columns, arrow)


def frame(dataset: lance.LanceDataset, where: str | None) -> daft.DataFrame:
    """Lazy: nothing is read before the frame is collected. Rows come in row order where the plan keeps order."""
    schema = dataset.schema.remove_metadata()
    fragments = [fragment.fragment_id for fragment in dataset.get_fragments()]
    return LanceSource(dataset.uri, dataset.version, where, schema, fragments).read()
