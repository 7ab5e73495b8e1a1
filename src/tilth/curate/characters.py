"""A column of texts as one flat array of code points: what rules about text are computed on.

Notable: one decode per batch instead of one Python object per document; a document, a line or a word is a pair of
positions in that array; counts per document are differences of a running sum, so empty documents need no special case.
Equality of spans is decided by a polynomial hash whose prefix sums give the hash of any span in constant time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPACE, LETTER, DIGIT, PUNCTUATION, SYMBOL, CONTROL = 1, 2, 3, 4, 5, 6
_CLASS_OF_CATEGORY = {"L": LETTER, "M": LETTER, "N": DIGIT, "P": PUNCTUATION, "S": SYMBOL, "Z": SPACE, "C": CONTROL}
_NEWLINE = 0x0A
_PIECE_BYTES = 2**19  # small enough for its arrays to stay in a processor's cache
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


@cache
def classes() -> np.ndarray:
    """uint8 (0x110000,): the class of each code point, by Unicode's general category; tabs and line ends are SPACE."""
    table = np.fromiter((_CLASS_OF_CATEGORY[unicodedata.category(chr(code))[0]] for code in range(0x110000)), np.uint8, 0x110000)
    table[[0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85]] = SPACE
    return table


@dataclass(frozen=True)
class Spans:
    """Non-empty stretches of a flat array: begin, end (exclusive) and the document each lies in, all int64 (spans,)."""

    begin: np.ndarray
    end: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def lengths(self) -> np.ndarray:
        return self.end - self.begin

    def where(self, mask: np.ndarray) -> Spans:
        return Spans(self.begin[mask], self.end[mask], self.document[mask])


@dataclass(frozen=True)
class Characters:
    """codes: uint8 if all are ASCII, else uint32 (characters of all documents,).

    starts: int64 (documents + 1,), where each document begins, then the end.
    """

    codes: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, texts: pa.Array) -> Characters:
        """The code points of a string array; a null reads as the empty text."""
        texts = pc.fill_null(texts.cast(pa.large_string()), "")
        offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
        data = texts.buffers()[2]
        raw = (
            np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
            if data is not None and len(offsets)
            else np.zeros(0, np.uint8)
        )
        offsets = offsets - offsets[0]
        if not raw.size or raw.max() < 0x80:
            return cls(raw, offsets)
        codes = np.frombuffer(raw.tobytes().decode("utf-8").encode("utf-32-le"), np.uint32)
        return cls(codes, running((raw & 0xC0) != 0x80)[offsets])  # bytes that continue a character do not count

    def __len__(self) -> int:
        return len(self.starts) - 1

    def array(self) -> pa.Array:
        """Back to strings (large_string)."""
        starts, codes = self.starts, self.codes
        if codes.dtype == np.uint8:
            data = pa.py_buffer(np.ascontiguousarray(codes))
        else:
            widths = 1 + (codes >= 0x80).view(np.uint8) + (codes >= 0x800).view(np.uint8) + (codes >= 0x10000).view(np.uint8)
            starts = running(widths)[starts]
            data = pa.py_buffer(codes.tobytes().decode("utf-32-le").encode("utf-8"))
        return pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(np.ascontiguousarray(starts)), data)

    def composed(self) -> Characters:
        """In Unicode's form NFC: one call for all documents, with a line feed between them, which composes with nothing."""
        joined = np.insert(self.codes.astype(np.uint32), self.starts[1:], _NEWLINE).tobytes().decode("utf-32-le")
        if unicodedata.is_normalized("NFC", joined):
            return self
        codes = np.frombuffer(unicodedata.normalize("NFC", joined).encode("utf-32-le"), np.uint32)
        ends = np.flatnonzero(codes == _NEWLINE)[np.cumsum(self.count(self.codes == _NEWLINE) + 1) - 1]
        return Characters(np.delete(codes, ends), np.concatenate([[0], ends - np.arange(len(self))]))

    def select(self, mask: np.ndarray) -> Characters:
        """Only the characters where `mask` holds."""
        dropped = np.flatnonzero(~mask)
        return Characters(self.codes[mask], self.starts - np.searchsorted(dropped, self.starts)) if dropped.size else self

    def count(self, mask: np.ndarray) -> np.ndarray:
        """Per document, for how many characters `mask` holds: int64 (documents,)."""
        return np.diff(np.searchsorted(np.flatnonzero(mask), self.starts))

    def total(self, spans: Spans, weights: np.ndarray | None = None) -> np.ndarray:
        """Per document, how many of these spans it has, or the sum of their weights: float64 (documents,)."""
        return np.bincount(spans.document, weights, len(self)).astype(np.float64)

    def inside(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """bool per character: it lies in one of the stretches, which do not overlap (some may be empty)."""
        marks = np.zeros(len(self.codes) + 1, np.int8)
        filled = end > begin
        marks[begin[filled]] = 1
        marks[end[filled]] -= 1
        return np.cumsum(marks[:-1], dtype=np.int8).view(bool)

    def first(self) -> np.ndarray:
        """bool per character: it begins its document."""
        return self._marked(self.starts[:-1])

    def last(self) -> np.ndarray:
        """bool per character: it ends its document."""
        return self._marked(self.starts[1:][np.diff(self.starts) > 0] - 1)

    def _marked(self, positions: np.ndarray) -> np.ndarray:
        marked = np.zeros(len(self.codes) + 1, bool)  # an empty document at the end begins past the last character
        marked[positions] = True
        return marked[:-1]

    def before(self, mask: np.ndarray) -> np.ndarray:
        """`mask` of the character before, in the same document; False where there is none."""
        shifted = np.zeros_like(mask)
        shifted[1:] = mask[:-1]
        return shifted & ~self.first()

    def after(self, mask: np.ndarray) -> np.ndarray:
        """`mask` of the character after, in the same document; False where there is none."""
        shifted = np.zeros_like(mask)
        shifted[:-1] = mask[1:]
        return shifted & ~self.last()

    def spans(self, inside: np.ndarray) -> Spans:
        """Maximal runs of `inside` within one document."""
        begin = np.flatnonzero(inside & ~self.before(inside))
        end = np.flatnonzero(inside & ~self.after(inside)) + 1
        return Spans(begin, end, np.searchsorted(self.starts, begin, side="right") - 1)

    def words(self) -> Spans:
        """Runs of characters that are not white space."""
        return self.spans(classes()[self.codes] != SPACE)

    def trimmed(self, spans: Spans) -> Spans:
        """The spans without white space at their ends; what is nothing but white space is left out."""
        solid = np.flatnonzero(classes()[self.codes] != SPACE)
        low, high = np.searchsorted(solid, spans.begin), np.searchsorted(solid, spans.end)
        some = high > low
        return Spans(solid[low[some]], solid[high[some] - 1] + 1, spans.document[some])

    def hashes(self, spans: Spans) -> np.ndarray:
        """uint64 (spans,): equal for equal content, and but for chance different for different content.

        sum of mix(code) * base**k modulo 2**64, k from 0 in each span, from the differences of one running sum.
        """
        size = len(self.codes)
        mixed = mix(self.codes.astype(np.uint64))
        powers = np.multiply.accumulate(np.full(size + 1, _BASE, np.uint64))
        inverse = np.multiply.accumulate(np.full(size + 1, pow(_BASE, -1, 2**64), np.uint64))
        sums = np.zeros(size + 1, np.uint64)
        np.cumsum(mixed * powers[:size], out=sums[1:])
        return mix((sums[spans.end] - sums[spans.begin]) * inverse[spans.begin] + spans.lengths.astype(np.uint64))


def running(values: np.ndarray) -> np.ndarray:
    """int64 (len + 1,): the sum of the values before each position."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: a bijection of uint64 in which every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def by_pieces(function: Callable[[pa.Array], pa.Array], texts: pa.Array) -> pa.Array:
    """function over stretches of about half a MiB of text, joined: bounds the memory that flat arrays take."""
    pieces = [function(piece) for piece in _pieces(texts)]
    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


def _pieces(texts: pa.Array) -> Iterator[pa.Array]:
    sizes = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    piece = running(sizes)[:-1] // _PIECE_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(texts)]
    for begin, end in pairwise(cuts):
        yield texts.slice(begin, end - begin)
