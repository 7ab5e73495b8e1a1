"""WebDataset tars: files that share a name up to the first dot are one example, their endings its columns.

Notable: nothing is ever unpacked to disk, so no member's path can lead anywhere; members with '..', absolute paths, links and
devices are listed all the same, because they do not belong in data.
"""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from tilth.corpus import walk
from tilth.corpus.columns import merged_schema, storable
from tilth.corpus.decode import decode
from tilth.corpus.readers.base import PLACE, Reader, gather
from tilth.corpus.readers.jsonl import parsed, shaped, type_of
from tilth.corpus.readers.media import IMAGE_SUFFIXES, SOUND_SUFFIXES, image_facts, sound_facts
from tilth.corpus.skipped import SkipList
from tilth.registry import method

_TEXT = {"txt", "text", "caption", "transcript", "md"}
_LIMIT = 1 << 30
_MEDIA = (("image", IMAGE_SUFFIXES, image_facts), ("sound", SOUND_SUFFIXES, sound_facts))
SUFFIXES = (".tar", ".tar.gz", ".tgz")


@method("reader", "webdataset")
class WebDataset(Reader):
    """A .tar (.tar.gz, .tgz) or a folder of them.

    Columns: image and sound (encoded bytes, checked), text, label (from .cls), the fields of .json, and any other ending as
    bytes under its own name. Ids are 'archive/name'.
    """

    def __init__(self, path: str | Path, /) -> None:
        super().__init__(path)
        self._schema: pa.Schema | None = None

    def archives(self, skip: SkipList) -> Iterator[tuple[Path, str]]:
        for path, name in walk.files(self.path, skip):
            if self.path.is_file() or name.lower().endswith(SUFFIXES):
                yield path, name
            else:
                skip(name, "not a tar file by its name")

    def schema(self) -> pa.Schema:
        if self._schema is None:
            quiet = SkipList()
            found = {
                example.schema(): None
                for path, name in self.archives(quiet)
                for example in examples(path, name, quiet, media=False)
            }
            columns = storable(merged_schema(found))
            self._schema = pa.schema([(PLACE, pa.string()), *zip(columns.names, columns.types)])
        return self._schema

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        schema = self.schema()
        return gather((row for path, name in self.archives(skip) for row in self._rows(path, name, schema, skip)), schema)

    def peek(self) -> pa.RecordBatch | None:
        """The first examples with their own columns: no pass over the archives."""
        quiet = SkipList()
        first = list(islice((e for path, name in self.archives(quiet) for e in examples(path, name, quiet, media=True)), 32))
        columns = storable(merged_schema(example.schema() for example in first))
        rows = [{c: shaped(value, columns.field(c).type) for c, (_, value) in example.columns.items()} for example in first]
        return pa.RecordBatch.from_pylist(rows, columns) if len(columns) else None

    @staticmethod
    def _rows(path: Path, name: str, schema: pa.Schema, skip: SkipList) -> Iterator[dict[str, Any]]:
        for example in examples(path, name, skip, media=True):
            values = {column: shaped(value, schema.field(column).type) for column, (_, value) in example.columns.items()}
            if values:
                yield {PLACE: example.place, **values}


@dataclass
class Example:
    """The members of one name: column -> (type, value)."""

    place: str
    columns: dict[str, tuple[pa.DataType, Any]] = field(default_factory=dict)

    def schema(self) -> pa.Schema:
        return pa.schema([(column, kind) for column, (kind, _) in self.columns.items()])

    def put(self, column: str, ending: str, kind: pa.DataType, value: Any) -> None:
        """A second member for a column goes under its ending."""
        self.columns[column if column not in self.columns else ending.replace(".", "_")] = (kind, value)


def examples(path: Path, name: str, skip: SkipList, *, media: bool) -> Iterator[Example]:
    """The examples of one archive in order. media: read and check images, sound and other bytes; False leaves them None."""
    example: Example | None = None
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or the archive's whole list stays in memory
                place = f"{name}/{member.name}"
                fault = unfit(member)
                if fault:
                    if fault != "a folder":
                        skip(place, fault)
                    continue
                folder, base = posixpath.split(member.name)
                stem, _, ending = base.partition(".")
                key = posixpath.normpath(posixpath.join(name, folder, stem))
                if example is None or example.place != key:
                    if example is not None:
                        yield example
                    example = Example(key)
                add(example, ending.lower(), tar, member, place, skip, media=media)
            check_end(tar)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        skip(
            name,
            f"an empty file or not a whole tar: {error}" if example is None else f"breaks off after {example.place}: {error}",
        )
    if example is not None:
        yield example


def check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError unless the archive ends as one does; `tarfile` takes any damaged header after the first for its end."""
    file: Any = tar.fileobj
    file.seek(tar.offset)  # type: ignore[attr-defined]
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the mark of its end is missing")
    if block.strip(b"\0"):
        raise tarfile.ReadError("a damaged header, and what follows it is not read")


def unfit(member: tarfile.TarInfo) -> str:
    """Why a member is not data; '' for an ordinary file."""
    if member.isdir():
        return "a folder"
    if member.islnk() or member.issym():
        return f"a link (to {member.linkname}); links are not followed"
    if not member.isreg():
        return "not an ordinary file"
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name.replace("\\", "/")).parts:
        return "its path leads out of the archive"
    return f"{member.size} bytes, more than one row can hold ({_LIMIT})" if member.size > _LIMIT else ""


def add(
    example: Example, ending: str, tar: tarfile.TarFile, member: tarfile.TarInfo, place: str, skip: SkipList, *, media: bool
) -> None:
    """Put one member into its example."""
    column, check = next(
        ((c, f) for c, suffixes, f in _MEDIA if f".{ending}" in suffixes), (ending.replace(".", "_") or "data", None)
    )
    plain_text = ending in _TEXT or ending in ("cls", "json")
    if not media and not plain_text:
        example.put(column, ending, pa.binary(), None)
        return
    stream = tar.extractfile(member)
    data = stream.read() if stream else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} has {len(data)} of {member.size} bytes")
    if not plain_text:
        try:
            if check:
                check(data)
            example.put(column, ending, pa.binary(), data)
        except ValueError as error:
            skip(place, str(error))
        return
    text, note = decode(data)
    if note:
        skip(place, note, kept=text is not None)
    if text is None:
        return
    if ending != "json":
        example.put("label" if ending == "cls" else "text", ending, pa.string(), text.strip() if ending == "cls" else text)
        return
    try:
        value, replaced = parsed(text)
    except ValueError as error:
        skip(place, str(error))
        return
    if replaced:
        skip(place, replaced, kept=True)
    for key, inner in (value if isinstance(value, dict) else {"json": value}).items():
        example.put(key, f"json_{key}", type_of(inner), inner)
