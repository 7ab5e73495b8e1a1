"""Folders of text and of code, or one such file: a row per file.

Notable: a long text is cut at line ends into parts, so a dump of any size is read in bounded memory and nothing of it is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tilth.corpus import walk
from tilth.corpus.decode import decode, line_blocks, open_bytes
from tilth.corpus.readers.base import PLACE, Reader, gather
from tilth.corpus.skipped import SkipList
from tilth.registry import PositiveInt, method

LANGUAGES = {
    ".bash": "shell", ".c": "c", ".cc": "c++", ".clj": "clojure", ".cpp": "c++", ".cs": "c#", ".css": "css", ".cu": "cuda",
    ".dart": "dart", ".el": "lisp", ".erl": "erlang", ".ex": "elixir", ".f90": "fortran", ".go": "go", ".h": "c", ".hpp": "c++",
    ".hs": "haskell", ".java": "java", ".jl": "julia", ".js": "javascript", ".jsx": "javascript", ".kt": "kotlin", ".lua": "lua",
    ".m": "matlab", ".ml": "ocaml", ".php": "php", ".pl": "perl", ".py": "python", ".pyi": "python", ".pyx": "cython", ".r": "r",
    ".rb": "ruby", ".rs": "rust", ".scala": "scala", ".sh": "shell", ".sql": "sql", ".swift": "swift", ".ts": "typescript",
    ".tsx": "typescript", ".v": "verilog", ".vb": "basic", ".zig": "zig",
}  # fmt: skip


def texts(path: Path, name: str, part_bytes: int, skip: SkipList) -> Iterator[tuple[str, str]]:
    """(place, text) of one file: one, or one per part of about `part_bytes` when it is longer."""
    try:
        size = path.stat().st_size
    except OSError as error:
        skip(name, f"cannot be read: {error.strerror}")
        return
    if size <= part_bytes:
        data = walk.read(path, name, skip)
        if data is None:
            return
        text, note = decode(data)
        if note:
            skip(name, note, kept=text is not None)
        if text is not None and text.strip():
            yield name, text
        elif text is not None:
            skip(name, "nothing but white space")
        return
    with path.open("rb") as file:
        if decode(file.read(1 << 16))[1].startswith("binary"):
            skip(name, "binary, not text")
            return
    with open_bytes(path) as stream:
        noted = lambda line, reason, kept: skip(f"{name}:{line}", reason, kept=kept)
        for number, (_, block) in enumerate(line_blocks(stream, part_bytes, noted)):
            yield f"{name}#{number}", block.decode("utf-8")


@method("reader", "text")
class Text(Reader):
    """Every text file at or below a path: columns id (relative path) and text. Files longer than `part_bytes` become parts."""

    gives = "text"

    def __init__(self, path: str | Path, /, *, part_bytes: PositiveInt = 32 * 2**20) -> None:
        super().__init__(path)
        self.part_bytes = part_bytes

    def schema(self) -> pa.Schema:
        return pa.schema([(PLACE, pa.string()), ("text", pa.string())])

    def rows(self, skip: SkipList) -> Iterator[dict[str, Any]]:
        for path, name in walk.files(self.path, skip):
            for place, text in texts(path, name, self.part_bytes, skip):
                yield {PLACE: place, "text": text}

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        return gather(self.rows(skip), self.schema())


@method("reader", "code")
class Code(Reader):
    """Every source file at or below a path: columns id (relative path), text and language; other files are listed."""

    gives = "text"

    def __init__(self, path: str | Path, /, *, part_bytes: PositiveInt = 32 * 2**20) -> None:
        super().__init__(path)
        self.part_bytes = part_bytes

    def schema(self) -> pa.Schema:
        return pa.schema([(PLACE, pa.string()), ("text", pa.string()), ("language", pa.string())])

    def rows(self, skip: SkipList) -> Iterator[dict[str, Any]]:
        for path, name in walk.files(self.path, skip):
            language = LANGUAGES.get(path.suffix.lower())
            if language is None:
                skip(name, "not a source file by its name")
                continue
            for place, text in texts(path, name, self.part_bytes, skip):
                yield {PLACE: place, "text": text, "language": language}

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        return gather(self.rows(skip), self.schema())
