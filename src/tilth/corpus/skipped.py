"""What a reader could not take as it was: listed with place and reason, never lost and never fatal unless asked.

Notable: the whole list goes to a file as it grows, so a billion bad lines need no memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tilth.errors import TilthError

SHOWN = 10_000


@dataclass(frozen=True)
class Skipped:
    """where: file, file:line, or file#row. kept: the content is in the corpus all the same, but not as it stood."""

    where: str
    reason: str
    kept: bool = False


class SkipList:
    """Called with each item that is skipped or changed; writes it to `path` as a line of JSON.

    items: the first 10,000. count: items skipped. changed: items kept, but not as they stood.
    strict: raise TilthError on the first one instead.
    """

    def __init__(self, path: Path | None = None, *, strict: bool = False) -> None:
        self.path, self.strict = path, strict
        self.items: list[Skipped] = []
        self.count = self.changed = 0
        self._file: TextIO | None = None
        if path is not None:
            path.unlink(missing_ok=True)

    def __call__(self, where: str, reason: str, *, kept: bool = False) -> None:
        if self.strict:
            raise TilthError(reason, where=where, hint="Without 'strict' this is listed and the rest is read.")
        item = Skipped(where, reason, kept)
        self.count += not kept
        self.changed += kept
        if len(self.items) < SHOWN:
            self.items.append(item)
        if self.path is not None:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
            self._file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")

    def first(self) -> str:
        """The first few items in words; '' when there are none."""
        lines = [f"{item.where}: {item.reason}" for item in self.items[:3]]
        return "First: " + "; ".join(lines) if lines else ""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
