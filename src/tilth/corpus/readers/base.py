"""The shape of a reader, and what readers share: rows gathered into batches of bounded size.

Notable: every batch carries the place of each row in column PLACE; ids are made of it where the data bring none, and it is
named when something is wrong with a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from tilth.corpus.skipped import SkipList

PLACE = "tilth:place"
BATCH_BYTES, BATCH_ROWS = 8 * 2**20, 4096


class Reader(ABC):
    """A file or folder (or Hub id) -> record batches.

    gives: the kind of content ('text', 'image', 'sound'), or 'table' when the columns must tell.
    unique_places: whether no two rows can have the same place, so that ids made of places need no check.
    """

    gives: ClassVar[str] = "table"
    unique_places: ClassVar[bool] = False
    kind: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns that `batches` yields, PLACE (string) among them. May read the source once."""

    @abstractmethod
    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        """All rows, in a fixed order; calls `skip(where, reason)` for what is left out or changed."""

    def peek(self) -> pa.RecordBatch | None:
        """Some first rows, cheaply, to see what the columns hold; None when there are none."""
        return next(iter(self.batches(SkipList())), None)


def gather(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows, each one file's content or so, as batches of about 8 MiB."""
    held: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))
        if size >= BATCH_BYTES or len(held) >= BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(held, schema)
            held, size = [], 0
    if held:
        yield pa.RecordBatch.from_pylist(held, schema)


def places(name: str, mark: str, numbers: range) -> pa.Array:
    """'name:7', 'name:8' ...: where rows stand."""
    return pa.array([f"{name}{mark}{number}" for number in numbers], pa.string())
