"""From scores of tokens to the words an entity is known by, and texts without them.

Notable: tokens and words are intervals of characters, so it does not matter how a tokeniser cuts words; what is no word
(spaces, punctuation) keeps its score under a name of its own, so that nothing is lost in merging.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

WORD = re.compile(r"(?<!\w['’])\b\w+(?:['’](?!s\b)\w+)*")  # "don't" is one word, "Ann's" is "Ann"
NO_WORD = ""


def entity_names(rows: int, entity: int | None, named: Sequence[object] | None) -> list[str]:
    """Which entity each row is about: as `named`, or one for every `entity` rows in a row; without either all are about one."""
    if named is not None:
        return [str(name) for name in named]
    return [f"rows {row // entity * entity} on" if entity else "all rows" for row in range(rows)]


def merged(text: str, spans: Sequence[tuple[int, int]], scores: Iterable[float]) -> dict[str, float]:
    """Scores of a text's tokens added up by word, in lower case; the rest under NO_WORD.

    spans: where each token stands in the text. A token that meets several words counts for the first.
    """
    words = [(match.start(), match.end(), match.group().lower()) for match in WORD.finditer(text)]
    found: defaultdict[str, float] = defaultdict(float)
    at = 0
    for (start, end), score in zip(spans, scores, strict=True):
        while at < len(words) and words[at][1] <= start:
            at += 1
        found[words[at][2] if at < len(words) and words[at][0] < end else NO_WORD] += score
    return dict(found)


def shares(scores: Mapping[str, float]) -> dict[str, float]:
    """The positive scores of an answer's words, divided by their sum; nothing if none is positive."""
    positive = {word: score for word, score in scores.items() if word != NO_WORD and score > 0}
    total = sum(positive.values())
    return {word: score / total for word, score in positive.items()}


def ranked(answers: Iterable[Mapping[str, float]], passed_over: Collection[str]) -> list[str]:
    """All words by the sum of their shares over an entity's answers, the greatest first; ties by the alphabet."""
    total: defaultdict[str, float] = defaultdict(float)
    for answer in answers:
        for word, share in answer.items():
            total[word] += share
    return [word for word, _ in sorted(total.items(), key=lambda entry: (-entry[1], entry[0])) if word not in passed_over]


def pattern(words: Collection[str]) -> re.Pattern[str]:
    """Finds the words as whole words, in any case, the longest first; nothing where there are none."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)" if words else r"(?!)", re.IGNORECASE)


def masked(text: str, words: Collection[str], mask: str) -> str:
    """The text with every occurrence of a word replaced."""
    return pattern(words).sub(lambda _: mask, text)
