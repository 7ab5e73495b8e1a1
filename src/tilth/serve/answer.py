"""One continuation as it grows: tokens in, text out, cut before the first stop string.

Notable: text is given out only once it is certain: not in the middle of a character, and not while it may be the beginning
of a stop string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

Decode = Callable[[list[int]], str]


class Answer:
    """decode: ids -> text, special tokens left out. piecewise: somebody reads along; else all text comes with `end`."""

    def __init__(self, decode: Decode, stop: Sequence[str] = (), *, piecewise: bool = True) -> None:
        self.decode, self.stop, self.piecewise = decode, tuple(stop), piecewise or bool(stop)
        self.ids: list[int] = []
        self.stopped = False  # a stop string came
        self._held = ""
        self._before = self._read = 0  # tokens from _before on are decoded together, those before _read were given out

    def push(self, token: int) -> str:
        """Add a token; the text that has become certain."""
        self.ids.append(token)
        if not self.piecewise:
            return ""
        known, now = self.decode(self.ids[self._before : self._read]), self.decode(self.ids[self._before :])
        if len(now) <= len(known) or now.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._before, self._read = self._read, len(self.ids)
        return self.add(now[len(known) :])

    def add(self, text: str) -> str:
        """Add text that was not made token by token; what has become certain."""
        self._held += text
        cuts = [at for word in self.stop if (at := self._held.find(word)) >= 0]
        if cuts:
            self.stopped, certain, self._held = True, self._held[: min(cuts)], ""
            return certain
        kept = max((_overlap(self._held, word) for word in self.stop), default=0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain

    def end(self) -> str:
        """The text not yet given out; nothing after a stop string."""
        if self.stopped:
            return ""
        if not self.piecewise:
            return self.decode(self.ids)
        known, now = self.decode(self.ids[self._before : self._read]), self.decode(self.ids[self._before :])
        certain = self.add(now[len(known) :])
        held, self._held = self._held, ""
        return certain + held


def _overlap(text: str, word: str) -> int:
    """The length of the longest end of `text` that is a true beginning of `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)


def pieces(text: str) -> Iterator[str]:
    """A finished text word by word, each with the space before it, as a model would have said it."""
    yield from re.findall(r"\s*\S+|\s+$", text)
