"""Texts rewritten so that Daft's `minhash`, which shingles what stands between spaces, shingles what we want.

Notable: words are Daft's own `normalize`, tokens and characters one insertion of spaces per batch.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
from daft import Expression
from daft.functions import normalize

from tilth.curate.characters import DIGIT, LETTER, SPACE, Characters, classes
from tilth.curate.frames import on_texts

Unit = Literal["word", "token", "character"]
_BLANK = 0x1F  # stands for white space where each character is a unit


def spaced(text: Expression, unit: Unit, *, lowercase: bool, punctuation: bool) -> Expression:
    """The text with exactly one space between units.

    unit: 'word' (between white space), 'token' (a run of letters, digits and underscores, or one other character) or
    'character' (every character; a run of white space is one). punctuation: False deletes ASCII punctuation before.
    """
    if unit == "word":
        return normalize(text, white_space=True, lowercase=lowercase, remove_punct=not punctuation)
    cleaned = normalize(text, white_space=unit == "character", lowercase=lowercase, remove_punct=not punctuation)
    apart = on_texts(_tokens_apart if unit == "token" else _characters_apart)(cleaned)
    return normalize(apart, white_space=True) if unit == "token" else apart


def _tokens_apart(texts: pa.Array) -> pa.Array:
    """A space before and after each character that is neither part of a word nor white space."""
    characters = Characters.of(texts)
    kinds = classes()[characters.codes]
    single = (kinds != SPACE) & (kinds != LETTER) & (kinds != DIGIT) & (characters.codes != ord("_"))
    return _insert_spaces(characters, single | characters.before(single)).array()


def _characters_apart(texts: pa.Array) -> pa.Array:
    """A space between all characters; the spaces that were there become a unit of their own."""
    characters = Characters.of(texts)
    codes = np.where(classes()[characters.codes] == SPACE, characters.codes.dtype.type(_BLANK), characters.codes)
    return _insert_spaces(Characters(codes, characters.starts), ~characters.first()).array()


def _insert_spaces(characters: Characters, before: np.ndarray) -> Characters:
    """A space in front of each character where `before` holds."""
    places = np.flatnonzero(before)
    codes = np.insert(characters.codes, places, characters.codes.dtype.type(0x20))
    return Characters(codes, characters.starts + np.searchsorted(places, characters.starts))
