"""CSV and TSV: streamed, types found over the whole file, ragged rows listed.

Notable: a column is a number only where every cell is one and none would change by it (00123 stays text); cells are never
turned into dates; the separator is the one that the first line has most of.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tilth.corpus.decode import LINE_LIMIT, decode, line_blocks, open_bytes
from tilth.corpus.readers.base import PLACE, places
from tilth.corpus.readers.tables import Tables
from tilth.corpus.skipped import SkipList
from tilth.registry import PositiveInt, method

_ABSENT = pa.array(["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"])
_WHOLE = r"^[+-]?(0|[1-9][0-9]{0,17})$"
_NUMBER = r"^[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"


@method("reader", "csv")
class CSV(Tables):
    """CSV or TSV (.csv, .tsv; .gz and .zst too), a file or a folder of files.

    delimiter: one character; '' finds it. header: whether the first line names the columns; without, they are c0, c1 ...
    Rows with too many or too few cells are listed and the rest is kept.
    """

    suffixes = tuple(base + packed for base in (".csv", ".tsv") for packed in ("", ".gz", ".zst"))

    def __init__(
        self, path: str | Path, /, *, delimiter: str = "", header: bool = True, block_bytes: PositiveInt = 4 * 2**20
    ) -> None:
        super().__init__(path)
        self.delimiter, self.header, self.block_bytes = delimiter, header, block_bytes

    def file_schema(self, path: Path, *, whole: bool) -> pa.Schema | None:
        kinds: dict[str, list[pa.DataType]] = {}
        for table in self._cells(path, "", SkipList()):
            for name, column in zip(table.schema.names, table.columns):
                kinds.setdefault(name, [pa.null()])
                kinds[name].append(kind_of_cells(column))
            if not whole:
                break
        if not kinds:
            return None
        return pa.schema([(name, widest(found)) for name, found in kinds.items()])

    def file_batches(self, path: Path, name: str, schema: pa.Schema, skip: SkipList) -> Iterator[pa.RecordBatch]:
        row = 0
        for cells in self._cells(path, name, skip):
            kinds = {field.name: field.type for field in schema}
            columns = [as_kind(column, kinds[key]) for key, column in zip(cells.schema.names, cells.columns)]
            place = places(name, "#", range(row, row + cells.num_rows))
            row += cells.num_rows
            yield pa.RecordBatch.from_arrays([place, *columns], [PLACE, *cells.schema.names])

    def _cells(self, path: Path, name: str, skip: SkipList) -> Iterator[pa.RecordBatch]:
        """Rows of text cells. A row longer than a block makes the file be read again from its start in larger blocks."""
        try:
            with open_bytes(path) as stream:
                first = self._first_line(stream.read(1 << 20))
            if first is None:
                skip(name, "an empty file" if not path.stat().st_size else "binary, not text")
                return
            done, listed = 0, Once(skip)
            for block_bytes in (self.block_bytes, self.block_bytes * 8, max(self.block_bytes * 64, LINE_LIMIT)):
                seen = 0
                try:
                    for batch in self._blocks(path, name, *first, block_bytes, listed):
                        fresh = batch.slice(max(0, done - seen))
                        seen += batch.num_rows
                        if fresh.num_rows:
                            done += fresh.num_rows
                            yield fresh
                    return
                except pa.ArrowInvalid as error:
                    if "straddl" not in str(error) or block_bytes >= LINE_LIMIT:
                        raise
                    listed.again()
        except (pa.ArrowInvalid, OSError, EOFError, zlib.error) as error:
            if "Empty CSV file" not in str(error):
                skip(name, f"the rest of the file cannot be read as CSV: {str(error).splitlines()[0]}")

    def _blocks(
        self, path: Path, name: str, delimiter: str, names: list[str], block_bytes: int, listed: Once
    ) -> Iterator[pa.RecordBatch]:
        noted = lambda line, reason, kept: listed("lines", f"{name}:{line}", reason, kept)
        with open_bytes(path) as stream:
            source = pa.PythonFile(Blocks(block for _, block in line_blocks(stream, block_bytes, noted)), mode="r")
            yield from pa.csv.open_csv(
                source,
                read_options=pa.csv.ReadOptions(
                    use_threads=False, block_size=block_bytes, column_names=names, skip_rows=int(self.header)
                ),
                parse_options=pa.csv.ParseOptions(
                    delimiter=delimiter,
                    newlines_in_values=True,
                    invalid_row_handler=ragged(name, listed),
                    ignore_empty_lines=True,
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=False
                ),
            )

    def _first_line(self, head: bytes) -> tuple[str, list[str]] | None:
        """Delimiter and column names; None for a file without text."""
        text = decode(head)[0] if head else None
        if text is None and head:  # cut inside a character
            text = decode(head[: head.rfind(b"\n") + 1])[0]
        if text is None or not text.strip():
            return None
        line = text.lstrip("\r\n").splitlines()[0]
        outside = "".join(line.split('"')[::2])
        delimiter = self.delimiter or max(",\t;|", key=outside.count)
        cells = next(csv.reader([line], delimiter=delimiter))
        names: list[str] = []
        for number, cell in enumerate(cells):
            wanted = (cell.strip() or f"c{number}") if self.header else f"c{number}"
            names.append(wanted if wanted not in names else f"{wanted}_{number}")
        return delimiter, names


class Blocks(io.RawIOBase):
    """Blocks of bytes, read as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks, self.rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer while there is anything: the parser takes a short read for a block of its own."""
        filled = 0
        while filled < len(buffer):
            if not self.rest:
                block = next(self.blocks, None)
                if block is None:
                    break
                self.rest = memoryview(block)
            count = min(len(buffer) - filled, len(self.rest))
            buffer[filled : filled + count], self.rest = self.rest[:count], self.rest[count:]
            filled += count
        return filled


class Once:
    """A list of what is skipped that survives reading the file again: what it was told before it does not pass on twice."""

    def __init__(self, skip: SkipList) -> None:
        self.skip = skip
        self.told: Counter[str] = Counter()
        self.heard: Counter[str] = Counter()

    def __call__(self, channel: str, where: str, reason: str, kept: bool) -> None:
        self.heard[channel] += 1
        if self.heard[channel] > self.told[channel]:
            self.told[channel] += 1
            self.skip(where, reason, kept=kept)

    def again(self) -> None:
        """The file is read from its start."""
        self.heard.clear()


def ragged(name: str, listed: Once) -> Callable[[Any], str]:
    """Lists a row with the wrong number of cells."""

    def handle(row: Any) -> str:
        place = f"{name}:{row.number}" if row.number is not None else name
        listed(
            "rows",
            place,
            f"a row of {row.actual_columns} cells where {row.expected_columns} are expected: {row.text[:80]}",
            False,
        )
        return "skip"

    return handle


def kind_of_cells(column: pa.Array) -> pa.DataType:
    """int64 or float64 where every cell that is not absent is such a number as it would be written, else string."""
    cells = column.filter(pc.invert(pc.is_in(column, _ABSENT)))
    if not len(cells):
        return pa.null()
    if pc.all(pc.match_substring_regex(cells, _WHOLE)).as_py():
        return pa.int64()
    return pa.float64() if pc.all(pc.match_substring_regex(cells, _NUMBER)).as_py() else pa.string()


def widest(kinds: list[pa.DataType]) -> pa.DataType:
    """The one type that holds what all blocks hold."""
    found = {kind for kind in kinds if not pa.types.is_null(kind)}
    if not found:
        return pa.string()
    if found <= {pa.int64(), pa.float64()}:
        return pa.float64() if pa.float64() in found else pa.int64()
    return pa.string()


def as_kind(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Text cells as the type of their column; absent ones are null in a column of numbers and as they are in one of text."""
    if pa.types.is_string(kind):
        return column
    present = pc.if_else(pc.is_in(column, _ABSENT), pa.scalar(None, pa.string()), column)
    return pc.replace_substring_regex(present, r"^\+", "").cast(kind)
