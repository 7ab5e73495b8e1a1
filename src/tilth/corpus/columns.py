"""Which columns hold what: types that fit several files, and where text, questions, images and labels are.

Notable: what is guessed is a rename and is said in words; a column is never dropped, and values that fit no common type
become strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from tilth.corpus.readers.base import PLACE
from tilth.errors import TilthError, nearest

KINDS = ("text", "answers", "image", "scene", "volume", "sound", "table")
_TEXT = (
    "text", "content", "body", "document", "article", "sentence", "utterance", "passage", "story", "abstract", "code", "raw_content",
    "comment", "review", "message",
)  # fmt: skip
_PAIRS = (
    ("question", "answer"), ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("query", "response"),
)  # fmt: skip
_IMAGE, _SOUND = ("image", "img", "picture", "photo"), ("sound", "audio", "recording")


@dataclass(frozen=True)
class Mapped:
    """kind of corpus; columns: our name -> theirs, for those renamed or recognised; why: how it was found."""

    kind: str
    columns: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


def merged(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """A type that holds the values of both; string when nothing better does."""
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    numbers = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (first, second)]
    if all(numbers) and pa.types.is_integer(first) != pa.types.is_integer(second):
        return pa.float64()
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        return pa.struct(list(merged_schema([pa.schema(list(first)), pa.schema(list(second))])))
    if pa.types.is_list(first) and pa.types.is_list(second):
        return pa.list_(merged(first.value_type, second.value_type))
    try:
        pair = [pa.schema([("value", first)]), pa.schema([("value", second)])]
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()


def merged_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Every column of any schema, in order of first appearance, each of a type that holds all its values."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for name, kind in zip(schema.names, schema.types):
            types[name] = merged(types[name], kind) if name in types else kind
    return pa.schema(list(types.items()))


def storable(schema: pa.Schema) -> pa.Schema:
    """Columns without any value become strings: a type without values cannot be stored."""

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_null(kind):
            return pa.string()
        if pa.types.is_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([(f.name, plain(f.type)) for f in kind]) if kind.num_fields else pa.string()
        return plain(kind.value_type) if pa.types.is_dictionary(kind) else kind

    return pa.schema([(name, plain(kind)) for name, kind in zip(schema.names, schema.types)])


def fitted(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column as `kind`; what has no such form becomes JSON text when `kind` is string. Raises ArrowInvalid otherwise."""
    if column.type == kind:
        return column
    nested = pa.types.is_nested(column.type)
    if pa.types.is_string(kind) and (nested or pa.types.is_boolean(column.type) or pa.types.is_binary(column.type)):
        return pa.array([as_text(value) for value in column.to_pylist()], kind)
    if pa.types.is_nested(kind) and nested:
        return pa.array(column.to_pylist(), kind)
    return column.cast(kind)


def as_text(value: object) -> str | None:
    """A value as text: strings as they are, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return value.hex() if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, default=str)


def fit(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with exactly the columns of `schema`; absent ones are null."""
    have = set(batch.schema.names)
    arrays = [
        fitted(batch.column(name), kind) if name in have else pa.nulls(batch.num_rows, kind)
        for name, kind in zip(schema.names, schema.types)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def map_columns(head: pa.RecordBatch, *, kind: str, gives: str, given: Mapping[str, str], place: str) -> Mapped:
    """What the columns of some first rows hold.

    kind: 'auto' or the kind that is wanted. gives: what the reader says it yields. given: our name -> theirs, from the user.
    Raises TilthError for a column that is not there, or when no column can hold the kind that is wanted.
    """
    names = [name for name in head.schema.names if name != PLACE]
    for ours, theirs in given.items():
        if theirs not in names:
            raise TilthError(f"there is no column '{theirs}' to take '{ours}' from", where=place, hint=nearest(theirs, names))
        if list(given.values()).count(theirs) > 1:
            raise TilthError(f"column '{theirs}' is named twice", where=place, hint="A column can have one name.")
    lower = {name.lower(): name for name in reversed(names)} | dict(given)
    if (
        kind in ("auto", "scene", "volume")
        and "bands" in names
        and "array" in lower
        and _is_bytes(head.column(lower["array"]).type)
    ):
        found = "volume" if "plane" in names else "scene"
        if kind in ("auto", found):
            return Mapped(found, {**given, "array": lower["array"]}, f"tiles in column '{lower['array']}'")
    if kind == "table":
        return Mapped("table", dict(given), "as asked")
    if kind in ("auto", "answers"):
        for question, answer in _PAIRS:
            ask, say = lower.get(question), lower.get(answer)
            if ask and say and all(_is_text(head.column(name).type) for name in (ask, say)):
                return Mapped("answers", {**given, "question": ask, "answer": say}, f"columns '{ask}' and '{say}'")
    for wanted, known in (("image", _IMAGE), ("sound", _SOUND)):
        if kind in ("auto", wanted):
            for name in known:
                if name in lower and _is_bytes(head.column(lower[name]).type):
                    return Mapped(wanted, {**given, wanted: lower[name]}, f"encoded bytes in column '{lower[name]}'")
    if kind in ("auto", "text"):
        for name in _TEXT:
            if name in lower and _is_text(head.column(lower[name]).type):
                return Mapped("text", {**given, "text": lower[name]}, f"column '{lower[name]}'")
        prose = {name: length for name in names if (length := _prose(head.column(name))) is not None}
        if prose:
            longest = max(prose, key=lambda name: prose[name])
            return Mapped(
                "text", {**given, "text": longest}, f"column '{longest}' holds the longest text, {prose[longest]:.0f} characters"
            )
    if kind not in ("auto", gives):
        needs = {"answers": "{'question': ..., 'answer': ...}"}.get(kind, f"{{'{kind}': ...}}")
        raise TilthError(f"no column holds {kind}", where=place, hint=f"Name it: columns={needs}, of {names}.")
    return Mapped(
        "table",
        dict(given),
        f"columns {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}: none of prose, images, tiles or sound",
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _is_bytes(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _prose(column: pa.Array) -> float | None:
    """Mean length in characters of a column of prose; None for a column that is not: short, or without spaces."""
    if not _is_text(column.type) or column.null_count == len(column):
        return None
    length = pc.mean(pc.utf8_length(column)).as_py()
    spaced = pc.mean(pc.match_substring(column, " ").cast(pa.uint8())).as_py()
    return length if length >= 32 and spaced >= 0.5 else None
