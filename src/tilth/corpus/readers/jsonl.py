"""JSON Lines, plain or compressed: blocks parsed at once, lines one by one only in a block that has a bad one.

Notable: two passes, the first for the columns and their types, so that a field that first appears in the last line is kept;
strings stay strings (dates are not guessed); a field of several types becomes text, as JSON where it is not text already.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from tilth.corpus.columns import as_text, merged, merged_schema
from tilth.corpus.decode import line_blocks, open_bytes
from tilth.corpus.readers.base import PLACE, places
from tilth.corpus.readers.tables import Tables
from tilth.corpus.skipped import SkipList
from tilth.registry import PositiveInt, method

_BROKEN = (OSError, EOFError, zlib.error, gzip.BadGzipFile)  # of a compressed stream


@method("reader", "jsonl")
class JSONLines(Tables):
    """One JSON object per line (.jsonl, .ndjson, .json; .gz and .zst too), in a file or a folder of files.

    Lines that are not a JSON object are listed by number and the rest is kept.
    block_bytes: how much is parsed at once; memory is about ten times that.
    """

    suffixes = tuple(base + packed for base in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst"))

    def __init__(self, path: str | Path, /, *, block_bytes: PositiveInt = 8 * 2**20) -> None:
        super().__init__(path)
        self.block_bytes = block_bytes

    def file_schema(self, path: Path, *, whole: bool) -> pa.Schema | None:
        found: pa.Schema | None = None
        quiet = SkipList()
        try:
            with open_bytes(path) as stream:
                for _, block in line_blocks(stream, self.block_bytes if whole else 1 << 18, lambda *_: None):
                    table = parse(block)
                    schema = plain_schema(table.schema) if table is not None else lines_schema(objects(block, 1, "", quiet))
                    found = schema if found is None else merged_schema([found, schema])
                    if not whole and found.names:
                        break
        except _BROKEN:
            return found  # file_batches lists it
        return found

    def file_batches(self, path: Path, name: str, schema: pa.Schema, skip: SkipList) -> Iterator[pa.RecordBatch]:
        noted = lambda line, reason, kept: skip(f"{name}:{line}", reason, kept=kept)
        asked = pa.schema([field for field in schema if field.name != PLACE])
        empty, last = True, 0
        try:
            with open_bytes(path) as stream:
                for line, block in line_blocks(stream, self.block_bytes, noted):
                    empty, last = False, line
                    yield from self._rows(block, line, name, asked, skip)
        except _BROKEN as error:
            skip(f"{name}:{last}", f"cannot be read after the block that begins here: {error}")
            return
        if empty:
            skip(name, "an empty file")

    def _rows(self, block: bytes, line: int, name: str, asked: pa.Schema, skip: SkipList) -> Iterator[pa.RecordBatch]:
        table = parse(block, asked)
        if table is not None:
            place = places(name, ":", range(line, line + table.num_rows))
            yield from table.append_column(PLACE, place).combine_chunks().to_batches()
            return
        numbered = list(objects(block, line, name, skip))
        if numbered:
            place = pa.array([f"{name}:{number}" for number, _ in numbered])
            arrays = [built([row.get(field.name) for _, row in numbered], field.type) for field in asked]
            yield pa.RecordBatch.from_arrays([place, *arrays], [PLACE, *asked.names])


def parse(block: bytes, schema: pa.Schema | None = None) -> pa.Table | None:
    """All lines at once; None when not every line is exactly one object that fits the schema."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        table = pa.json.read_json(
            pa.BufferReader(block),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pa.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="error" if schema is not None else "infer"
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != lines:  # blank lines, or several objects on one: numbers would be wrong
        return None
    return table


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The columns as they are stored."""
    return pa.schema([(field.name, plain(field.type)) for field in schema])


def plain(kind: pa.DataType) -> pa.DataType:
    """The parser takes some strings for dates; strings stay strings."""
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(f.name, plain(f.type)) for f in kind])
    return kind


def objects(block: bytes, line: int, name: str, skip: SkipList) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each good line."""
    for number, text in enumerate(block.split(b"\n"), start=line):
        if not text.strip():
            continue
        try:
            value, note = parsed(text.decode("utf-8"))
        except ValueError as error:
            skip(f"{name}:{number}", str(error))
            continue
        if not isinstance(value, dict):
            skip(f"{name}:{number}", f"not a JSON object but a {type(value).__name__}")
            continue
        if note:
            skip(f"{name}:{number}", note, kept=True)
        yield number, value


def parsed(text: str) -> tuple[Any, str]:
    """A JSON value, and a note when half characters in it were replaced. Raises ValueError, saying why, for what is not JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
        raise ValueError(f"not JSON that can be read: {error}") from None
    if "\\ud" in text.lower():  # perhaps half of a surrogate pair, which is no character
        whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
        if whole != json.dumps(value, ensure_ascii=False):
            return json.loads(whole), "half a surrogate pair is replaced by '?'"
    return value, ""


def lines_schema(numbered: Iterator[tuple[int, dict[str, Any]]]) -> pa.Schema:
    """Columns of objects that were parsed one by one."""
    types: dict[str, pa.DataType] = {}
    for _, row in numbered:
        for key, value in row.items():
            kind = type_of(value)
            types[key] = merged(types[key], kind) if key in types else kind
    return pa.schema(list(types.items()))


def type_of(value: Any) -> pa.DataType:
    """The type of a value that JSON can hold."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, list):
        kind: pa.DataType = pa.null()
        for item in value:
            kind = merged(kind, type_of(item))
        return pa.list_(kind)
    return pa.struct([(key, type_of(item)) for key, item in value.items()])


def built(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as a column of the type that all values of the field have in common."""
    return pa.array([shaped(value, kind) for value in values], kind)


def shaped(value: Any, kind: pa.DataType) -> Any:
    """A value as the common type holds it: text where the type is string, item by item in lists and structs."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return as_text(value)
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_list(kind):
        return [shaped(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {f.name: shaped(value.get(f.name), f.type) for f in kind}
    return value
