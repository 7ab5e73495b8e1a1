"""Heuristic quality filters: length, shape of words, symbols, lines. What Gopher (arXiv 2112.11446, A.1.1) and C4 look at.

Notable: all figures of a batch of texts are counted at once over flat arrays of characters, words and lines; each rule
is then one comparison of a column. A row gets the reason of the first rule it breaks, with the figure that breaks it.
"""

from collections.abc import Iterator

import daft
import numpy as np
import pyarrow as pa

from tilth.contracts import Step, method
from tilth.curate.characters import LETTER, Characters, Spans, classes
from tilth.curate.frames import judge, on_texts, remove, text_column
from tilth.registry import Fraction, NonNegative, NonNegativeInt, PositiveInt

_ELLIPSIS, _HASH, _DOT = 0x2026, ord("#"), ord(".")
_BULLETS = [ord(sign) for sign in "•‣◦⁃∙·●○▪-*"]
_STOPS = [ord(sign) for sign in ".!?\"'”’。！？…"]
_ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")


@method("curate", "quality")
class Quality(Step):
    """Removes texts outside the bounds; a bound that is null is not looked at. Rows without text are removed.

    The defaults hold for prose and source code in any language. Gopher's values for English web pages: min_words 50,
    max_words 100000, min_word_length 3, max_word_length 10, max_symbol_ratio 0.1, max_bullet_lines 0.9,
    max_ellipsis_lines 0.3, min_alphabetic_words 0.8, min_stop_words 2, max_duplicate_lines 0.3,
    max_duplicate_line_characters 0.2; C4 asks for lines that end in punctuation, at least three words a line and none of
    forbidden=['lorem ipsum', '{'].

    words: runs of characters that are not white space; word_length: their mean length. alphabetic: share of letters (and
    digits and marks) among characters that are not white space; alphabetic_words: of words with a letter. symbol_ratio:
    '#' and ellipses per word. bullet_lines, ellipsis_lines, terminal_lines: shares of non-empty lines that begin with a
    bullet, end with an ellipsis, end with a sentence's punctuation. duplicate_lines: share of non-empty lines that
    repeat an earlier line of the text; duplicate_line_characters: share of characters in them. stop_words: how many of
    the eight words the, be, to, of, and, that, have, with occur. forbidden: lower-case strings, looked for in any case.
    """

    def __init__(
        self,
        *,
        column: str = "text",
        min_characters: NonNegativeInt | None = None,
        max_characters: PositiveInt | None = None,
        min_words: NonNegativeInt | None = 5,
        max_words: PositiveInt | None = 100_000,
        min_word_length: NonNegative | None = 2.0,
        max_word_length: NonNegative | None = 30.0,
        min_alphabetic: Fraction | None = 0.4,
        min_alphabetic_words: Fraction | None = None,
        max_symbol_ratio: NonNegative | None = 0.5,
        max_bullet_lines: Fraction | None = 0.95,
        max_ellipsis_lines: Fraction | None = 0.6,
        min_terminal_lines: Fraction | None = None,
        max_duplicate_lines: Fraction | None = 0.6,
        max_duplicate_line_characters: Fraction | None = 0.6,
        min_stop_words: NonNegativeInt | None = None,
        forbidden: list[str] = [],  # noqa: B006  (read only)
    ) -> None:
        self.column = column
        self.bounds: dict[str, tuple[float | None, float | None]] = {
            "characters": (min_characters, max_characters),
            "words": (min_words, max_words),
            "word length": (min_word_length, max_word_length),
            "alphabetic share": (min_alphabetic, None),
            "share of words with a letter": (min_alphabetic_words, None),
            "symbols per word": (None, max_symbol_ratio),
            "share of bullet lines": (None, max_bullet_lines),
            "share of lines ending in an ellipsis": (None, max_ellipsis_lines),
            "share of lines ending in punctuation": (min_terminal_lines, None),
            "share of duplicate lines": (None, max_duplicate_lines),
            "share of characters in duplicate lines": (None, max_duplicate_line_characters),
            "stop words": (min_stop_words, None),
        }
        self.forbidden = [phrase.lower() for phrase in forbidden]

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        text = text_column(frame, self.column, self.name)
        frame = remove(frame, on_texts(self.reasons)(text))
        for phrase in self.forbidden:
            found = daft.functions.contains(daft.functions.lower(text), phrase)
            reason = daft.functions.when(found, daft.lit(f"{self.name}: contains '{phrase}'")).otherwise(daft.lit(None))
            frame = remove(frame, reason)
        return frame

    def reasons(self, texts: pa.Array) -> pa.Array:
        """Why each text is removed; null where it is kept."""
        asked = {name: bounds for name, bounds in self.bounds.items() if bounds != (None, None)}
        return judge(self.name, texts, asked, figures(Characters.of(texts), set(asked)))


def figures(characters: Characters, asked: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float64 (documents,)) of each figure asked for; a share of nothing is 0."""
    kinds = classes()[characters.codes]
    words = characters.words()
    count = characters.total(words)
    solid = characters.total(words, words.lengths)
    yield "characters", np.diff(characters.starts).astype(np.float64)
    yield "words", count
    yield "word length", share(solid, count)
    if "alphabetic share" in asked:
        # digits count: a table of numbers is data, a row of dashes is not
        yield "alphabetic share", share(characters.count((kinds == LETTER) | (kinds == LETTER + 1)), solid)
    if "share of words with a letter" in asked:
        letters = np.searchsorted(np.flatnonzero(kinds == LETTER), [words.begin, words.end])
        yield "share of words with a letter", share(characters.total(words.where(letters[1] > letters[0])), count)
    if "symbols per word" in asked:
        yield "symbols per word", share(_symbols(characters), count)
    yield from _line_figures(characters, asked)
    if "stop words" in asked:
        yield "stop words", _stop_words(characters, words)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)


def repeated(document: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """bool: the same hash stands earlier in the same document."""
    order = np.lexsort((hashes, document))  # stable: the order in the text within equals
    same = (hashes[order[1:]] == hashes[order[:-1]]) & (document[order[1:]] == document[order[:-1]])
    result = np.zeros(len(order), bool)
    result[order[1:][same]] = True
    return result


def _line_figures(characters: Characters, asked: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Shares of non-empty lines, by how they begin and end and whether they repeat."""
    codes = characters.codes
    lines = characters.trimmed(characters.spans(codes != 0x0A))
    count = characters.total(lines)
    opening, closing = codes[lines.begin], codes[lines.end - 1]
    if "share of bullet lines" in asked:
        yield "share of bullet lines", share(characters.total(lines.where(np.isin(opening, _BULLETS))), count)
    if "share of lines ending in an ellipsis" in asked:
        dots = np.ones(len(lines), bool)
        for back in (1, 2, 3):
            dots &= codes[np.maximum(lines.end - back, lines.begin)] == _DOT
        ends = (closing == _ELLIPSIS) | (dots & (lines.lengths >= 3))
        yield "share of lines ending in an ellipsis", share(characters.total(lines.where(ends)), count)
    if "share of lines ending in punctuation" in asked:
        yield "share of lines ending in punctuation", share(characters.total(lines.where(np.isin(closing, _STOPS))), count)
    if asked & {"share of duplicate lines", "share of characters in duplicate lines"}:
        again = lines.where(repeated(lines.document, characters.hashes(lines)))
        yield "share of duplicate lines", share(characters.total(again), count)
        size = characters.total(lines, lines.lengths)
        yield "share of characters in duplicate lines", share(characters.total(again, again.lengths), size)


def _symbols(characters: Characters) -> np.ndarray:
    """How many '#' and ellipses ('…', or each three dots of a run) each document has: float64 (documents,)."""
    signs = characters.count((characters.codes == _HASH) | (characters.codes == _ELLIPSIS))
    dots = characters.spans(characters.codes == _DOT)
    return signs + characters.total(dots, dots.lengths // 3)


def _stop_words(characters: Characters, words: Spans) -> np.ndarray:
    """How many different English stop words each document has: float64 (documents,)."""
    lowered = np.where((characters.codes >= 65) & (characters.codes <= 90), characters.codes + 32, characters.codes)
    hashes = Characters(lowered, characters.starts).hashes(words)
    stop = Characters.of(pa.array(_ENGLISH))
    which = np.full(len(words), -1)
    for number, one in enumerate(stop.hashes(stop.words())):
        which[hashes == one] = number
    found = np.zeros((len(characters), len(_ENGLISH)), bool)
    some = which >= 0
    found[words.document[some], which[some]] = True
    return found.sum(axis=1).astype(np.float64)
