"""The files below a folder in a fixed order: links followed but no folder entered twice, oddities listed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError

_MADE_BY_TOOLS = {"__pycache__", "node_modules"}


def present(path: str | Path) -> Path:
    """The path, which must exist and be readable; TilthError says what is there instead."""
    path = Path(path).expanduser()
    try:
        path.stat()
    except FileNotFoundError:
        nearby = sorted(entry.name for entry in path.parent.iterdir())[:8] if path.parent.is_dir() else []
        hint = f"In {path.parent} there are: {', '.join(nearby)}" if nearby else f"{path.parent} does not exist or is empty."
        raise TilthError("no such file or folder", where=str(path), hint=hint) from None
    except OSError as error:
        raise TilthError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return path


def files(root: Path, skip: SkipList) -> Iterator[tuple[Path, str]]:
    """(path, name) of every regular file at or below root, sorted by name; name is relative to root, with '/'.

    Skipped with a reason: hidden files and folders, tools' caches, links to nothing, links to a folder that is already being
    read (loops), folders that cannot be listed, and what is neither file nor folder.
    """
    if root.is_file():
        yield root, root.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return
    seen: dict[tuple[int, int], str] = {}
    waiting: list[tuple[Path, str, list[str]]] = [(root, "", [""])]  # folders, and the names that are left in them
    while waiting:
        folder, above, entries = waiting[-1]
        if not entries:
            waiting.pop()
            continue
        entry = entries.pop()
        shown = entry.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # a name need not be text
        path, name = folder / entry, f"{above}/{shown}" if above else shown
        try:
            status = path.stat()
        except OSError as error:
            loop = "a link that leads back to itself" if path.is_symlink() and error.errno == errno.ELOOP else ""
            skip(name, loop or ("a link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror}"))
            continue
        base = name.rpartition("/")[2]
        if base.startswith("."):
            skip(name, "hidden")
        elif stat.S_ISREG(status.st_mode):
            yield path, name
        elif not stat.S_ISDIR(status.st_mode):
            skip(name, "neither a file nor a folder")
        elif base in _MADE_BY_TOOLS:
            skip(name, "a cache of a tool")
        elif (status.st_dev, status.st_ino) in seen:
            skip(name, f"the same folder as '{seen[status.st_dev, status.st_ino] or '.'}' (a link)")
        else:
            seen[status.st_dev, status.st_ino] = name
            try:
                waiting.append((path, name, sorted((entry.name for entry in os.scandir(path)), reverse=True)))
            except OSError as error:
                skip(name, f"cannot be listed: {error.strerror}")


def read(path: Path, name: str, skip: SkipList, limit: int = 1 << 30) -> bytes | None:
    """The content of a file of at most `limit` bytes; None, with the reason listed, when it is empty or cannot be read."""
    try:
        size = path.stat().st_size
        if size > limit:
            skip(name, f"{size} bytes, more than one row can hold ({limit})")
            return None
        data = path.read_bytes()
    except OSError as error:
        skip(name, f"cannot be read: {error.strerror}")
        return None
    if not data:
        skip(name, "an empty file")
        return None
    return data
