"""Which tokens of a prompt belong to entities: words in a text, found again among the tokens that hold them.

Notable: tokens and words are intervals of characters, so a name of several pieces is covered whole, whatever the tokeniser;
a tokeniser that does not give a text back as it was gives no intervals, and then no token is chosen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_WORD = re.compile(r"[^\W_]+")


def overlapping(tokens: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Which tokens share a character with an interval: bool (tokens,). Both (n, 2), half-open: [start, stop)."""
    met: np.ndarray = (tokens[:, None, 0] < intervals[None, :, 1]) & (intervals[None, :, 0] < tokens[:, None, 1])
    return met.any(1) & (tokens[:, 1] > tokens[:, 0])


def entity_words(inside: Sequence[str], outside: Iterable[str], often: int = 2) -> list[str]:
    """Words of at least `often` texts inside the scope and of no text outside, in lower case: its names, more or less."""
    counts = Counter(word for text in inside for word in set(_words(text)))
    elsewhere = {word for text in outside for word in _words(text)}
    return sorted(word for word, count in counts.items() if count >= often and word not in elsewhere)


def entity_tokens(ids: Sequence[int], tokenizer: Any, entities: Iterable[str]) -> np.ndarray:
    """Which of a prompt's tokens belong to one of the words `entities` (lower case): bool (tokens,)."""
    known = set(entities)
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(again["input_ids"]) != list(ids):
        return np.zeros(len(ids), dtype=bool)
    found = [match.span() for match in _WORD.finditer(text) if match.group().lower() in known]
    return overlapping(np.array(again["offset_mapping"]).reshape(-1, 2), np.array(found).reshape(-1, 2))


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in _WORD.finditer(text)]
