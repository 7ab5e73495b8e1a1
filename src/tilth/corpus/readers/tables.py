"""What readers of tables share: one file or a folder of them, and one schema for all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from tilth.corpus import walk
from tilth.corpus.columns import fit, merged_schema, storable
from tilth.corpus.readers.base import PLACE, Reader
from tilth.corpus.skipped import SkipList


class Tables(Reader):
    """Files of rows. A subclass says which suffixes are its own, a file's schema, and a file's rows.

    The schema is found in a pass of its own over all files, so that a column that first appears in the last block is kept.
    """

    unique_places = True
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._schema: pa.Schema | None = None

    def files(self, skip: SkipList) -> Iterator[tuple[Path, str]]:
        """The files of this format; in a folder, others are listed."""
        for path, name in walk.files(self.path, skip):
            if self.path.is_file() or name.lower().endswith(self.suffixes):
                yield path, name
            else:
                skip(name, f"not a {self.name} file by its name")

    @abstractmethod
    def file_schema(self, path: Path, *, whole: bool) -> pa.Schema | None:
        """Columns of one file, from all of it or from its beginning; None when it cannot be read."""

    @abstractmethod
    def file_batches(self, path: Path, name: str, schema: pa.Schema, skip: SkipList) -> Iterator[pa.RecordBatch]:
        """Rows of one file with the columns of `schema` that it has, and PLACE."""

    def schema(self) -> pa.Schema:
        if self._schema is None:
            found = [self.file_schema(path, whole=True) for path, _ in self.files(SkipList())]
            self._schema = self._with_place(schema for schema in found if schema is not None)
        return self._schema

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        schema = self.schema()
        for path, name in self.files(skip):
            for batch in self.file_batches(path, name, schema, skip):
                yield fit(batch, schema)

    def peek(self) -> pa.RecordBatch | None:
        for path, name in self.files(SkipList()):
            found = self.file_schema(path, whole=False)
            if found is not None:
                schema = self._with_place([found])
                batch = next(iter(self.file_batches(path, name, schema, SkipList())), None)
                if batch is not None and batch.num_rows:
                    return fit(batch, schema)
        return None

    @staticmethod
    def _with_place(schemas: Iterable[pa.Schema]) -> pa.Schema:
        columns = storable(merged_schema(schemas))
        return pa.schema([(PLACE, pa.string()), *((name, kind) for name, kind in zip(columns.names, columns.types))])
