"""Token sequences with anchored terms replaced, and where each original token stands in the translation.

Notable: only the tokens of a replaced term change; all others keep their ids and map one to one, so nothing behind a term is
misaligned when its counterpart takes more or fewer tokens. A counterpart is encoded with the white space and marks that share
the term's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilth.batches.text.encoding import Encoder
from tilth.unlearn.anchors import Anchors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEFORE = "a"  # encoded and decoded in front of a piece, so that it reads as in the middle of a text
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a part of a character decodes to


@dataclass(frozen=True)
class Translation:
    """ids (translated tokens,). Of the original tokens: aligned (tokens,), the translated place of each; tokens of a term have
    that of their counterpart's start. repeated (tokens,) bool: in a second or later occurrence of a term.

    seen: of each term that occurs, the first place behind its first occurrence and the ids its counterpart begins with.
    """

    ids: NDArray[np.int64]
    aligned: NDArray[np.int64]
    repeated: NDArray[np.bool_]
    seen: list[tuple[int, list[int]]]


class Translator:
    """Replaces terms in token sequences of one tokeniser."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, anchors: Anchors) -> None:
        self.encoder, self.anchors, self.unknown = Encoder(tokenizer), anchors, tokenizer.unk_token_id
        self.before = self.encoder.core.encode(_BEFORE, add_special_tokens=False).ids
        self.known: dict[int, str] = {}
        self.encoded: dict[str, list[int]] = {}

    def __call__(self, ids: NDArray[np.int64]) -> Translation:
        """ids: one sequence without padding, (tokens,)."""
        pieces = self.pieces(ids.tolist())
        ends = np.cumsum([len(piece) for piece in pieces])
        starts = ends - np.array([len(piece) for piece in pieces])
        text = "".join(pieces)
        spans: list[tuple[int, int, int, list[int]]] = []  # first token, token behind the last, number of term, new ids
        terms: dict[str, int] = {}
        beginnings: dict[str, set[int]] = {}
        matches = self.anchors.find(text)
        inside = [int(np.searchsorted(starts, match.start, side="right")) - 1 for match in matches]
        first = [int(np.searchsorted(starts, starts[token], side="left")) for token in inside]
        behind = [int(np.searchsorted(starts, match.end, side="left")) for match in matches]
        for group in _touching(first, behind):
            begin, end = first[group[0]], behind[group[-1]]
            done, new = int(starts[begin]), ""
            for number in group:
                match = matches[number]
                new += text[done : match.start] + match.replacement
                done = match.end
                terms.setdefault(match.term.casefold(), len(terms))
                beginnings.setdefault(match.term.casefold(), set()).update(self.beginning(match.replacement))
            new += text[done : int(ends[end - 1])]
            spans.append((begin, end, terms[matches[group[-1]].term.casefold()], self.encode(new)))
        return _spliced(ids, spans, [sorted(beginnings[term]) for term in terms])

    def pieces(self, ids: list[int]) -> list[str]:
        """The text of each token, in the middle of a text; a character of several tokens belongs to its last."""
        new = sorted(set(ids) - self.known.keys())
        self.known |= dict(zip(new, self.decode([[token] for token in new]), strict=True))
        pieces = [self.known[token] for token in ids]
        at = 0
        for broken, group in groupby(pieces, key=lambda piece: _BROKEN in piece):
            count = len(list(group))
            if broken:
                whole = self.decode([ids[at : at + count]])[0]
                pieces[at : at + count] = [""] * (count - 1) + [whole]
            at += count
        return pieces

    def decode(self, sequences: list[list[int]]) -> list[str]:
        start = len(self.encoder.core.decode(self.before, skip_special_tokens=False))
        texts = self.encoder.core.decode_batch([self.before + ids for ids in sequences], skip_special_tokens=False)
        return [text[start:] for text in texts]

    def encode(self, fragment: str) -> list[int]:
        """A piece of text in the middle of a text: white space at its front is kept."""
        if fragment not in self.encoded:
            ids = self.encoder.core.encode(_BEFORE + fragment, add_special_tokens=False).ids
            alone = not fragment[:1].isspace() or ids[: len(self.before)] != self.before
            self.encoded[fragment] = (
                self.encoder.core.encode(fragment, add_special_tokens=False).ids if alone else ids[len(self.before) :]
            )
        return self.encoded[fragment]

    def beginning(self, words: str) -> set[int]:
        """The tokens that words begin with, behind a space and without one; none where the tokeniser does not know them."""
        found = set()
        for ids in (self.encode(f" {words}"), self.encode(words)):
            found.add(
                next(token for token, piece in zip(ids, self.pieces(ids), strict=True) if piece.strip() or token == ids[-1])
            )
        return found - {self.unknown}


def _touching(first: list[int], behind: list[int]) -> list[list[int]]:
    """Numbers of matches, those that share a token together."""
    groups: list[list[int]] = []
    for number in range(len(first)):
        if groups and first[number] < behind[groups[-1][-1]]:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _spliced(ids: NDArray[np.int64], spans: list[tuple[int, int, int, list[int]]], beginnings: list[list[int]]) -> Translation:
    """The sequence with spans of tokens replaced."""
    aligned, repeated = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
    parts: list[NDArray[np.int64]] = []
    seen: dict[int, int] = {}
    done = length = 0
    for begin, end, term, new in spans:
        aligned[done:begin] = length + np.arange(begin - done)
        length += begin - done
        aligned[begin:end] = length
        parts += [ids[done:begin], np.array(new, dtype=np.int64)]
        length, done = length + len(new), end
        repeated[begin:end] = term in seen
        seen.setdefault(term, end)
    aligned[done:] = length + np.arange(len(ids) - done)
    return Translation(
        np.concatenate([*parts, ids[done:]]), aligned, repeated, [(end, beginnings[term]) for term, end in seen.items()]
    )
