"""Texts that differ only in how they are written down become equal: Unicode form, line ends, invisible characters.

Notable: whole batches at a time; what is deleted is a mask over code points. Applied twice it changes nothing more,
which fixes the order: deleting a control character can bring a letter and its accent together, so NFC comes after it.
"""

from functools import cache

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tilth.contracts import Step, method
from tilth.curate.characters import SPACE, Characters, classes
from tilth.curate.frames import on_texts, text_column
from tilth.registry import NonNegativeInt

_NEWLINE, _RETURN, _TAB, _BOM = 0x0A, 0x0D, 0x09, 0xFEFF
_LINE_ENDS = (0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029)


@method("curate", "normalise")
class Normalise(Step):
    """Rewrites the text column; removes no row. Nulls stay null.

    controls: delete control characters (Unicode category Cc; formats such as joiners carry meaning and stay) and byte
    order marks. unicode: compose to NFC. line_ends: CR LF, CR, VT, FF, NEL and the Unicode separators become LF.
    trailing_space: delete white space before a line end or the end of the text. blank_lines: at most so many empty
    lines in a row (none: as they are). strip: delete empty lines at both ends of the text.
    """

    def __init__(
        self,
        *,
        column: str = "text",
        controls: bool = True,
        unicode: bool = True,
        line_ends: bool = True,
        trailing_space: bool = True,
        blank_lines: NonNegativeInt | None = 2,
        strip: bool = True,
    ) -> None:
        self.column, self.controls, self.unicode, self.line_ends = column, controls, unicode, line_ends
        self.trailing_space, self.blank_lines, self.strip = trailing_space, blank_lines, strip

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        text = text_column(frame, self.column, self.name)
        return frame.with_column(self.column, on_texts(self.normalised)(text))

    def normalised(self, texts: pa.Array) -> pa.Array:
        """The normalised texts, null where the input is null."""
        characters = Characters.of(texts)
        if self.controls:
            characters = characters.select(~_controls()[characters.codes])
        if self.unicode and characters.codes.size and characters.codes.max() >= 0x300:  # below, no character composes
            characters = characters.composed()
        if self.line_ends:
            characters = _one_line_end(characters)
        if self.trailing_space:
            characters = characters.select(~_trailing(characters))
        if self.blank_lines is not None or self.strip:
            characters = characters.select(~self._surplus_lines(characters))
        return pc.if_else(pc.is_valid(texts), characters.array(), None)

    def _surplus_lines(self, characters: Characters) -> np.ndarray:
        """bool per character: a line end of one empty line too many, or at an end of the text."""
        newline = characters.codes == _NEWLINE
        runs = characters.spans(newline)
        at_start = runs.begin == characters.starts[runs.document]
        at_end = runs.end == characters.starts[runs.document + 1]
        allowed = np.full(len(runs), np.iinfo(np.int64).max)
        if self.blank_lines is not None:
            # n empty lines are n + 1 line ends after text, but n at the very start
            allowed = self.blank_lines + np.where(at_start, 0, 1)
        if self.strip:
            allowed = np.where(at_start | at_end, 0, allowed)
        return characters.inside(runs.begin + np.minimum(allowed, runs.lengths), runs.end)


@cache
def _controls() -> np.ndarray:
    """bool (0x110000,): code points that are invisible and mean nothing; line ends and tabs are not among them."""
    table = np.zeros(0x110000, bool)
    table[[*range(0x20), *range(0x7F, 0xA0), _BOM]] = True
    table[[_TAB, _NEWLINE, *_LINE_ENDS]] = False
    return table


@cache
def _line_ends() -> np.ndarray:
    """bool (0x110000,): code points that end a line, other than the line feed."""
    table = np.zeros(0x110000, bool)
    table[list(_LINE_ENDS)] = True
    return table


def _one_line_end(characters: Characters) -> Characters:
    """Every line end as a line feed."""
    codes = characters.codes
    if not (other := _line_ends()[codes]).any():
        return characters
    in_pair = (codes == _RETURN) & characters.after(codes == _NEWLINE)
    unified = Characters(np.where(other, codes.dtype.type(_NEWLINE), codes), characters.starts)
    return unified.select(~in_pair)


def _trailing(characters: Characters) -> np.ndarray:
    """bool per character: white space in a line, followed by nothing else in it."""
    codes = characters.codes
    newline = codes == _NEWLINE
    blank = (classes()[codes] == SPACE) & ~newline
    runs = characters.spans(blank)
    ends_line = (characters.after(newline) | characters.last())[runs.end - 1]
    return characters.inside(runs.begin[ends_line], runs.end[ends_line])
