"""Texts -> token ids in bulk, past transformers' per-text overhead.

Notable: text is data: a special token's name that occurs in a text is encoded as letters, never as the special token,
so no document can end itself or mask itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tilth.errors import TilthError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """A tokeniser's fast core with truncation, padding and special tokens in texts turned off. Threads encode in parallel."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.core = Tokenizer.from_str(core(tokenizer))
        self.core.no_truncation()
        self.core.no_padding()
        self.core.encode_special_tokens = True

    def __call__(self, texts: Sequence[str], *, special: bool = False) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Token ids of all texts one after another, and how many each has. special: with the tokeniser's own frame
        ([CLS] ... [SEP], <s> ...)."""
        encodings = self.core.encode_batch_fast(list(texts), add_special_tokens=special)
        lengths = np.fromiter((len(encoding) for encoding in encodings), dtype=np.int64, count=len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, dtype=np.uint32, count=int(lengths.sum())), lengths

    def frame(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """What the tokeniser puts before and behind a text: ([CLS], [SEP]) for BERT, (<s>, nothing) for Llama."""
        framed, _ = self(["a"], special=True)
        plain, _ = self(["a"])
        before = next(n for n in range(len(framed)) if np.array_equal(framed[n : n + len(plain)], plain))
        return framed[:before], framed[before + len(plain) :]


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """24 hexadecimal digits: equal for tokenisers that turn texts into the same ids and mark the same special tokens."""
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return hashlib.sha256(f"{core(tokenizer)}{json.dumps(special)}".encode()).hexdigest()[:24]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a document: end of sequence, or the separator of BERT's kind."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise TilthError("the tokeniser has no token that ends a document", hint="Set its eos_token.")


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills up rows; the end token where there is none (it is never a target and never attended to)."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else end_token(tokenizer)


def mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that hides a token."""
    if tokenizer.mask_token_id is None:
        raise TilthError("the tokeniser has no mask token", hint="Train one with `tokenizer: bpe`, or set its mask_token.")
    return int(tokenizer.mask_token_id)


def core(tokenizer: PreTrainedTokenizerBase) -> str:
    """The content of tokenizer.json; TilthError for a tokeniser that has none."""
    if not getattr(tokenizer, "is_fast", False):
        raise TilthError(
            f"the tokeniser {type(tokenizer).__name__} has no tokenizer.json",
            hint="Convert it to a fast tokeniser with transformers and save it again.",
        )
    text: str = tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    return text
