"""Texts that say the same thing again and again: Gopher's repetition filters (arXiv 2112.11446, A.1.1 and table A1).

Notable: an n-gram is a pair of positions whose hash comes in constant time from one running sum over the words' hashes;
repeats are found by sorting (document, hash) pairs, for all documents of a batch at once.
"""

from collections.abc import Iterator

import daft
import numpy as np
import pyarrow as pa

from tilth.contracts import Step, method
from tilth.curate.characters import Characters, Spans, mix, running
from tilth.curate.frames import judge, on_texts, remove, text_column
from tilth.curate.quality import repeated, share
from tilth.registry import Fraction

_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_NEWLINE = 0x0A


@method("curate", "repetition")
class Repetition(Step):
    """Removes texts in which too much is repeated; the defaults are Gopher's, made for web pages.

    paragraphs: share of paragraphs (apart by an empty line) that repeat an earlier one; paragraph_characters: of the
    characters in them. top_ngrams: {n: share} the most frequent n-gram of words may have of all characters of words.
    duplicate_ngrams: {n: share} of the characters of words that may lie in n-grams that occur more than once; a
    character is counted once. Duplicate lines are in `quality`.
    """

    def __init__(
        self,
        *,
        column: str = "text",
        paragraphs: Fraction | None = 0.30,
        paragraph_characters: Fraction | None = 0.20,
        top_ngrams: dict[int, Fraction] = _TOP,
        duplicate_ngrams: dict[int, Fraction] = _DUPLICATE,
    ) -> None:
        self.column, self.top_ngrams, self.duplicate_ngrams = column, dict(top_ngrams), dict(duplicate_ngrams)
        self.bounds: dict[str, tuple[float | None, float | None]] = {
            "share of duplicate paragraphs": (None, paragraphs),
            "share of characters in duplicate paragraphs": (None, paragraph_characters),
            **{_top(n): (None, most) for n, most in self.top_ngrams.items()},
            **{_duplicate(n): (None, most) for n, most in self.duplicate_ngrams.items()},
        }

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        return remove(frame, on_texts(self.reasons)(text_column(frame, self.column, self.name)))

    def reasons(self, texts: pa.Array) -> pa.Array:
        """Why each text is removed; null where it is kept."""
        asked = {name: bounds for name, bounds in self.bounds.items() if bounds != (None, None)}
        return judge(self.name, texts, asked, self.figures(Characters.of(texts)), needs_text=False)

    def figures(self, characters: Characters) -> Iterator[tuple[str, np.ndarray]]:
        """(name, float64 (documents,)) of each figure."""
        paragraphs = _paragraphs(characters)
        again = paragraphs.where(repeated(paragraphs.document, characters.hashes(paragraphs)))
        yield "share of duplicate paragraphs", share(characters.total(again), characters.total(paragraphs))
        size = characters.total(paragraphs, paragraphs.lengths)
        yield "share of characters in duplicate paragraphs", share(characters.total(again, again.lengths), size)
        words = Words(characters)
        for n in self.top_ngrams:
            yield _top(n), share(words.top(n), words.size)
        for n in self.duplicate_ngrams:
            yield _duplicate(n), share(words.duplicated(n), words.size)


class Words:
    """The words of a batch, and what share of their characters lies in repeated n-grams."""

    def __init__(self, characters: Characters) -> None:
        self.spans, self.documents = characters.words(), len(characters)
        self.lengths = running(self.spans.lengths)
        self.hashes = characters.hashes(self.spans)
        self.size = characters.total(self.spans, self.spans.lengths)

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First word, document and hash of each n-gram that lies within one document."""
        first = np.arange(max(len(self.spans) - n + 1, 0))
        first = first[self.spans.document[first] == self.spans.document[first + n - 1]]
        state = np.zeros(len(first), np.uint64)
        for offset in range(n):
            state = mix(state + self.hashes[first + offset])
        return first, self.spans.document[first], state

    def top(self, n: int) -> np.ndarray:
        """Characters (of words) in all occurrences of the most frequent n-gram, of several the longest: (documents,)."""
        first, document, hashes = self.ngrams(n)
        order = np.lexsort((hashes, document))
        changes = (hashes[order[1:]] != hashes[order[:-1]]) | (document[order[1:]] != document[order[:-1]])
        begin = np.flatnonzero(np.concatenate([[True], changes])) if len(order) else order
        counts = np.diff(np.append(begin, len(order)))
        one = order[begin]
        covered = counts * (self.lengths[first[one] + n] - self.lengths[first[one]])
        most, best = np.zeros(self.documents, np.int64), np.zeros(self.documents)
        several = counts > 1
        np.maximum.at(most, document[one][several], counts[several])
        winners = several & (counts == most[document[one]])
        np.maximum.at(best, document[one][winners], covered[winners])
        return np.minimum(best, self.size)  # occurrences may overlap

    def duplicated(self, n: int) -> np.ndarray:
        """Characters (of words) in n-grams that stand earlier in the text too, each counted once: (documents,)."""
        first, document, hashes = self.ngrams(n)
        again = first[repeated(document, hashes)]
        marks = np.zeros(len(self.spans) + 1, np.int64)
        np.add.at(marks, again, 1)
        np.add.at(marks, again + n, -1)
        inside = np.cumsum(marks[:-1]) > 0
        return np.bincount(self.spans.document[inside], self.spans.lengths[inside], self.documents)


def _paragraphs(characters: Characters) -> Spans:
    """Stretches between empty lines, without white space at their ends."""
    newline = characters.codes == _NEWLINE
    empty_line = newline & (characters.before(newline) | characters.after(newline))
    return characters.trimmed(characters.spans(~empty_line))


def _top(n: int) -> str:
    return f"share of the most frequent {n}-gram"


def _duplicate(n: int) -> str:
    return f"share of duplicate {n}-grams"
