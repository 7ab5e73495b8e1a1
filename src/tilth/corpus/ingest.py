"""Whatever a user has, into a corpus: read in bounded memory, every skipped item listed, nothing lost.

Notable: ids that the data bring are kept, repeated ones get '#2', '#3' ... and are listed; where there are none a row is
called by its place, so that ingesting the same data again gives the same corpus and the same fingerprint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tilth.context import Progress
from tilth.corpus import catalogue
from tilth.corpus.columns import KINDS, Mapped, fitted, map_columns
from tilth.corpus.detect import nothing, reader_of
from tilth.corpus.identity import SeenIds
from tilth.corpus.readers.base import PLACE, Reader
from tilth.corpus.skipped import SkipList, Skipped
from tilth.corpus.table import Corpus
from tilth.errors import TilthError, nearest
from tilth.registry import Configured, use

_NEEDED = {
    "text": ("text",), "answers": ("question", "answer"), "image": ("image",), "sound": ("sound",),
    "scene": ("array",), "volume": ("array",), "table": (),
}  # fmt: skip


@dataclass(frozen=True)
class Ingested:
    """corpus; read: rows in it; skipped: what was left out or changed, with its reason (the first 10,000);
    skipped_count: items left out; skipped_file: the whole list as JSON lines, None when nothing was skipped; seconds."""

    corpus: Corpus
    read: int
    skipped: list[Skipped]
    seconds: float
    skipped_count: int = 0
    skipped_file: Path | None = None
    mapped: Mapped = field(default_factory=lambda: Mapped("table"))


def ingest(
    source: str | Path | catalogue.Source,
    uri: str | Path,
    *,
    kind: str = "auto",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    reader: Configured | None = None,
    base: Path | None = None,
) -> Ingested:
    """Read a catalogue name, a path or `hf:owner/name` into a corpus at `uri`.

    kind: 'auto' or what the corpus is to be ('text', 'answers', 'image', 'scene', 'volume', 'sound', 'table'). columns: our
    name -> theirs, e.g. {'text': 'body'}. strict: the first item that cannot be read as it stands is a TilthError. reader:
    instead of the one that is detected. base: folder that relative paths start from.
    What is skipped or changed is also written to `skipped.jsonl` beside the corpus.
    """
    started = time.monotonic()
    progress = progress or Progress()
    if kind not in ("auto", *KINDS):
        raise TilthError(f"there is no kind of corpus '{kind}'", hint=nearest(kind, ["auto", *KINDS]))
    found = catalogue.resolve(source, base=base, progress=progress)
    place = found.name or str(found.path)
    if found.kind == "files":
        raise TilthError("no reader makes rows of these files", where=place, hint=f"They are at {found.path}.")
    wanted = found.kind if kind == "auto" and found.kind else kind
    chosen = reader or found.reader or use("reader", reader_of(found.path, wanted)[0])
    made: Reader = chosen.build(found.path)
    head = made.peek()
    skip = SkipList(None if "://" in str(uri) else Path(uri).parent / "skipped.jsonl", strict=strict)
    if head is None:
        raise nothing(made, place)
    mapped = map_columns(head, kind=wanted, gives=made.gives, given={**found.columns, **(columns or {})}, place=place)
    rows = Arranged(made, mapped, skip, progress)
    progress.start(f"reading {place}", None, "rows")
    try:
        about = {"kind": mapped.kind, "source": place, "licence": found.licence, "reader": chosen.name}
        corpus = Corpus.write_checked(uri, rows, rows.schema, metadata=about)
    finally:
        skip.close()
        progress.end()
    listed = skip.path if skip.count or skip.changed else None
    return Ingested(corpus, rows.count, skip.items, time.monotonic() - started, skip.count, listed, mapped)


class Arranged:
    """A reader's batches as a corpus wants them: columns named, an id for every row, rows without content listed."""

    def __init__(self, reader: Reader, mapped: Mapped, skip: SkipList, progress: Progress) -> None:
        self.reader, self.mapped, self.skip, self.progress = reader, mapped, skip, progress
        self.count = 0
        source = reader.schema()
        self.names = renamed([name for name in source.names if name != PLACE], mapped.columns)
        self.given_ids = "id" in self.names.values()
        self.seen = SeenIds()
        self.repeats: dict[str, int] = {}
        kinds = {ours: _stored(ours, source.field(theirs).type) for theirs, ours in self.names.items() if ours != "id"}
        self.schema = pa.schema([("id", pa.string()), *kinds.items()])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self.reader.batches(self.skip):
            arranged = self._arrange(batch)
            if arranged.num_rows:
                self.count += arranged.num_rows
                self.progress.update(self.count)
                yield arranged
        if not self.count:  # here, so that no empty table is committed
            raise TilthError("no row could be read", where=str(self.reader.path), hint=self.skip.first() or "It is empty.")

    def _arrange(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        batch = self._with_content(batch)
        place = batch.column(PLACE)
        columns = {ours: content(batch.column(theirs)) for theirs, ours in self.names.items()}
        ids = pc.coalesce(fitted(columns["id"], pa.string()), place) if self.given_ids else place
        if self.given_ids or not self.reader.unique_places:
            ids = self._unique(ids, place)
        arrays = [ids, *(fitted(columns[f.name], f.type) for f in self.schema if f.name != "id")]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _with_content(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows whose content is there; others are listed."""
        theirs = {ours: name for name, ours in self.names.items()}
        for ours in _NEEDED[self.mapped.kind]:
            column = content(batch.column(theirs[ours]))
            filled = pc.is_valid(column)
            if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
                filled = pc.and_(filled, pc.fill_null(pc.greater(pc.binary_length(column), 0), False))
            if not pc.all(filled).as_py():
                for where in batch.column(PLACE).filter(pc.invert(filled)).to_pylist():
                    self.skip(where, f"no {ours}")
                batch = batch.filter(filled)
        return batch

    def _unique(self, ids: pa.Array, place: pa.Array) -> pa.Array:
        """The ids; those that came before with '#2', '#3' ..., listed."""
        repeated = self.seen.add(ids)
        if not repeated.any():
            return ids
        values = ids.to_pylist()
        for row in repeated.nonzero()[0].tolist():
            first = values[row]
            number = self.repeats.get(first, 2)
            while self.seen.add(pa.array([f"{first}#{number}"]))[0]:
                number += 1
            if first in self.repeats or len(self.repeats) < 100_000:  # or an id that every row has costs n^2
                self.repeats[first] = number + 1
            values[row] = f"{first}#{number}"
            self.skip(str(place[row]), f"the id '{first}' is taken: kept as '{values[row]}'", kept=True)
        return pa.array(values, pa.string())


def renamed(theirs: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Their name -> ours for every column; one that is in the way of a mapped one is called NAME_original."""
    ours: dict[str, str] = {source: target for target, source in columns.items()}
    taken = set(ours.values())
    for name in theirs:
        if name not in ours:
            plain = name.replace(".", "_") or "column"  # a dot would mean a field of a struct
            while plain in taken:
                plain += "_original"
            ours[name] = plain
            taken.add(plain)
    return {name: ours[name] for name in theirs}


def content(column: pa.Array) -> pa.Array:
    """Encoded bytes that came as {bytes, path} are the bytes."""
    kind = column.type
    if pa.types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}:
        return pc.struct_field(column, "bytes")
    return column


def _stored(name: str, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}:
        return pa.binary()
    return pa.string() if name in ("text", "question", "answer") else kind
