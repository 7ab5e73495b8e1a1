"""Which tokens go on with the word before them, from a tokeniser's vocabulary alone.

Notable: one look-up per token at run time; the table is made once from how each kind of tokeniser marks words
(`Ġ` and bytes, WordPiece's `##`, SentencePiece's `▁`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilth.batches.text.encoding import core

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class WordTable:
    """A word is a run of tokens that meet in letters (or, with `##`, that say so); punctuation stands alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        described = json.loads(core(tokenizer))
        size = len(tokenizer)
        special = set(tokenizer.all_special_ids)
        begins, ends = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        pieces = described["model"]["type"] == "WordPiece"
        decode = _byte_letters() if "ByteLevel" in json.dumps([described["pre_tokenizer"], described["decoder"]]) else None
        never = described["model"]["type"] == "WordLevel"  # every token is a word
        for number, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(size)))):
            if number in special or not token or never:
                continue
            if pieces:
                begins[number], ends[number] = token.startswith("##"), True
            elif decode is not None:
                begins[number], ends[number] = decode.get(token[0], False), decode.get(token[-1], False)
            else:
                begins[number], ends[number] = token[0].isalpha(), token[-1].isalpha()
        self._begins, self._ends = begins, ends

    def starts(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where a word starts in rows of ids (batch, tokens); a row's first token always starts one."""
        starts = np.ones(ids.shape, dtype=bool)
        starts[:, 1:] = ~(self._begins[ids[:, 1:]] & self._ends[ids[:, :-1]])
        return starts


def _byte_letters() -> dict[str, bool]:
    """GPT-2's printable stand-in of each byte -> whether it belongs to a word: letters, and parts of other characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return {character: byte >= 128 or chr(byte).isalpha() for byte, character in stand_in.items()}
