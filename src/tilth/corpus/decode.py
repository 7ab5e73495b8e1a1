"""Bytes to text: UTF-8, else what a byte order mark says, else Windows-1252 or Latin-1, said so; binary is not text.

Notable: a block that is UTF-8 throughout is checked once and passed on as it is; only in others is each line looked at.
"""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

BOMS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n\r\f\v\b\x1b")))
LINE_LIMIT = 256 * 2**20
Note = Callable[[int, str, bool], None]


def mark(data: bytes) -> tuple[str, int]:
    """Encoding that a byte order mark names and the mark's length; ('', 0) without one."""
    return next(((name, len(bom)) for bom, name in BOMS if data.startswith(bom)), ("", 0))


def looks_binary(data: bytes) -> bool:
    """More than one control character in twenty bytes, or a NUL in what is not UTF-8."""
    sample = data[: 1 << 20]
    return len(sample) - len(sample.translate(None, _CONTROL)) > len(sample) * 0.05


def decode(data: bytes) -> tuple[str | None, str]:
    """Text and a note ('' for plain UTF-8). Text is None, and the note the reason, for what is not text."""
    encoding, length = mark(data)
    if encoding:
        try:
            return data[length:].decode(encoding), "" if encoding == "utf-8" else f"decoded from {encoding}"
        except UnicodeDecodeError as error:
            return None, f"has the byte order mark of {encoding} but is not: {error.reason} at byte {error.start}"
    if looks_binary(data):
        return None, "binary, not text"
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError:
        return (None, "binary, not text") if b"\0" in data else eight_bit(data)


def eight_bit(data: bytes) -> tuple[str, str]:
    """What is not UTF-8, as Windows-1252, or as Latin-1 where that has no such character."""
    try:
        return data.decode("cp1252"), "not UTF-8: decoded as Windows-1252"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "not UTF-8: decoded as Latin-1"


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file, decompressed when it is gzip or zstd by its first bytes."""
    file = path.open("rb")
    head = file.read(4)
    file.seek(0)
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if head == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(file), "zstd")  # type: ignore[return-value]
    return file


def line_blocks(stream: BinaryIO, size: int, note: Note) -> Iterator[tuple[int, bytes]]:
    """(number of its first line from 1, block) of whole lines in UTF-8, about `size` bytes each.

    note(line, reason, kept) is told of lines that were decoded otherwise, are too long to hold, or are not text at all.
    """
    line, rest, dropping = 1, b"", False
    for chunk in _chunks(stream, size, note):
        if dropping:
            end = chunk.find(b"\n") + 1
            if not end:
                continue
            chunk, line, dropping = chunk[end:], line + 1, False
        cut = chunk.rfind(b"\n") + 1
        if cut:
            block, rest = rest + chunk[:cut], chunk[cut:]
            yield line, _repaired(block, line, note)
            line += block.count(b"\n")
        else:
            rest += chunk
            if len(rest) > LINE_LIMIT:
                note(line, f"a line of more than {LINE_LIMIT >> 20} MiB", False)
                rest, dropping = b"", True
    if rest:
        yield line, _repaired(rest, line, note)


def _chunks(stream: BinaryIO, size: int, note: Note) -> Iterator[bytes]:
    """The stream without its byte order mark, in UTF-8 where the mark names another encoding."""
    chunk = stream.read(size)
    encoding, length = mark(chunk)
    chunk = chunk[length:]
    if encoding in ("", "utf-8"):
        while chunk:
            yield chunk
            chunk = stream.read(size)
        return
    note(1, f"decoded from {encoding}", True)
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    damaged = False
    while chunk:
        text = decoder.decode(chunk)
        if not damaged and "\ufffd" in text:
            damaged = True
            note(1, f"some bytes are not {encoding}: replaced by U+FFFD", True)
        yield text.encode("utf-8")
        chunk = stream.read(size)
    yield decoder.decode(b"", final=True).encode("utf-8")


def _repaired(block: bytes, line: int, note: Note) -> bytes:
    """The block in UTF-8; a line that is binary becomes empty, so that the numbers of later lines stay right."""
    try:
        block.decode("utf-8")
        return block
    except UnicodeDecodeError:
        pass
    lines = []
    for number, data in enumerate(block.split(b"\n")):
        text, reason = decode(data)
        if reason:
            note(line + number, reason, text is not None)
        lines.append((text or "").encode("utf-8"))
    return b"\n".join(lines)
