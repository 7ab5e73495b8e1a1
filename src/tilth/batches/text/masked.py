"""Masked rows for masked language models (BERT, arXiv 1810.04805; whole words: card of PubMedBERT, arXiv 2007.15779).

Notable: every full row has exactly the same number of targets, so all rows weigh the same and the vocabulary head runs
on a block of fixed shape; which tokens are masked depends on the seed and the row's position in the run alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray

from tilth.batches.text.encoding import mask_token, pad_token
from tilth.batches.text.packed import Chunks
from tilth.batches.text.store import token_store
from tilth.batches.text.words import WordTable
from tilth.contracts import Batch, Examples, Noise
from tilth.errors import TilthError
from tilth.registry import Fraction, method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tilth.context import Context
    from tilth.corpus import Corpus


@method("batches", "masked")
class Masked:
    """Rows of `length` tokens, a share `mask_ratio` of them to be predicted.

    Of these a share `mask_share` is replaced by the mask token, `random_share` by a random token that is not special,
    and the rest stays. whole_word: words are masked whole; a row may then have a few targets fewer, never more.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Ge(2)] = 128,
        mask_ratio: Annotated[float, Gt(0), Lt(1)] = 0.15,
        whole_word: bool = False,
        mask_share: Fraction = 0.8,
        random_share: Fraction = 0.1,
        column: str = "text",
    ) -> None:
        if mask_share + random_share > 1:
            raise TilthError("mask_share and random_share are more than 1 together", where="batches.masked")
        self.length, self.mask_ratio, self.whole_word, self.column = length, mask_ratio, whole_word, column
        self.mask_share, self.random_share = mask_share, random_share

    def build(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: Context) -> Examples:
        chunks = Chunks(token_store(corpus, tokenizer, context, self.column), self.length, pad_token(tokenizer))
        return MaskedRows(chunks, tokenizer, self)


class MaskedRows:
    """batch: input_ids, labels (batch, length; -100 where nothing is to be predicted), positions (batch, targets).

    positions: the columns of the targets, ascending; a row with fewer targets is filled with columns whose label is
    -100. attention_mask (batch, length) only where the corpus's last, partly empty row is among the batch.
    """

    def __init__(self, chunks: Chunks, tokenizer: PreTrainedTokenizerBase, settings: Masked) -> None:
        self.chunks, self.settings, self.mask = chunks, settings, mask_token(tokenizer)
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[tokenizer.all_special_ids] = True
        self.ordinary = np.flatnonzero(~self.special)
        self.words = WordTable(tokenizer) if settings.whole_word else None
        self.targets = targets(chunks.length, settings.mask_ratio)

    def __len__(self) -> int:
        return len(self.chunks)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        ids, inside = self.chunks.windows(indices)
        maskable = ~self.special[ids] if inside is None else ~self.special[ids] & inside
        sizes = np.full(len(ids), ids.shape[1]) if inside is None else inside.sum(1)
        wanted = targets(sizes, self.settings.mask_ratio)
        scores = noise.uniform("masked/which", ids.shape[1])
        if self.words is None:
            chosen = _tokens(scores, maskable, wanted)
        else:
            chosen = _words(scores, self.words.starts(ids), maskable, wanted)
        labels = np.where(chosen, ids, -100)
        positions = np.argsort(~chosen, axis=1, kind="stable")[:, : self.targets]
        shown = self._shown(np.take_along_axis(ids, positions, axis=1), noise)
        corrupted = ids.copy()
        np.put_along_axis(
            corrupted,
            positions,
            np.where(np.take_along_axis(chosen, positions, axis=1), shown, np.take_along_axis(ids, positions, axis=1)),
            axis=1,
        )
        return Batch(
            tokens=int(sizes.sum()),
            samples=len(ids),
            input_ids=torch.from_numpy(corrupted),
            labels=torch.from_numpy(labels),
            positions=torch.from_numpy(positions),
            **({} if inside is None else {"attention_mask": torch.from_numpy(inside.astype(np.int64))}),
        )

    def _shown(self, truth: NDArray[np.int64], noise: Noise) -> NDArray[np.int64]:
        """What stands in the row in place of each target: the mask, another token, or the token itself."""
        draw = noise.uniform("masked/how", truth.shape[1])
        other = self.ordinary[(noise.uniform("masked/other", truth.shape[1]) * len(self.ordinary)).astype(np.int64)]
        masked, replaced = self.settings.mask_share, self.settings.mask_share + self.settings.random_share
        return np.where(draw < masked, self.mask, np.where(draw < replaced, other, truth))

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return self.chunks.rows(indices)


def targets(sizes: int | NDArray[np.int64], ratio: float) -> NDArray[np.int64]:
    """How many tokens of a row of this size are predicted: the nearest whole number, at least one."""
    count: NDArray[np.int64] = np.maximum(1, np.rint(np.asarray(sizes) * ratio)).astype(np.int64)
    return count


def _tokens(scores: NDArray[np.float64], maskable: NDArray[np.bool_], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The `wanted` maskable tokens of each row with the lowest scores."""
    order = np.argsort(np.where(maskable, scores, 2.0), axis=1)
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, order, np.arange(scores.shape[1]) < wanted[:, None], axis=1)
    return chosen & maskable


def _words(
    scores: NDArray[np.float64], starts: NDArray[np.bool_], maskable: NDArray[np.bool_], wanted: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whole words in the order of their scores, each that still fits, until `wanted` tokens are reached or none fits.

    A word with a token that may not be masked counts as none. Each round takes every word up to the first that does not
    fit and skips that one, so few rounds settle all rows.
    """
    batch, length = scores.shape
    word = np.cumsum(starts, axis=1) - 1
    flat = (word + length * np.arange(batch)[:, None]).ravel()
    size = np.bincount(flat, minlength=batch * length).reshape(batch, length)
    allowed = np.bincount(flat, weights=maskable.ravel(), minlength=batch * length).reshape(batch, length)
    order = np.argsort(scores, axis=1)
    size = np.take_along_axis(np.where(allowed == size, size, 0), order, axis=1)
    taken, left = np.zeros((batch, length), dtype=bool), wanted.copy()
    while True:
        fits = (size > 0) & (size <= left[:, None]) & ~taken
        more = fits & (np.cumsum(np.where(fits, size, 0), axis=1) <= left[:, None])
        if not more.any():
            break
        taken |= more
        left -= np.where(more, size, 0).sum(1)
    by_word = np.zeros_like(taken)
    np.put_along_axis(by_word, order, taken, axis=1)
    return np.take_along_axis(by_word, word, axis=1)
