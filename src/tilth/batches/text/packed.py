"""Documents as rows of fixed length for causal language models.

Notable: every token of the corpus stands in exactly one row, none is dropped; a batch is two fancy indexings of the
memory-mapped tokens. In `chunk` rows only the very last is filled up, on the right, where causal attention needs no
mask, so batches carry none and attention runs its fastest kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from tilth.batches.text.encoding import pad_token
from tilth.batches.text.packing import best_fit, cut
from tilth.batches.text.ragged import ranges
from tilth.batches.text.store import TokenStore, token_store
from tilth.contracts import Batch, Examples, Noise
from tilth.registry import method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tilth.context import Context
    from tilth.corpus import Corpus


@method("batches", "packed")
class Packed:
    """Rows of `length` tokens for causal language modelling.

    packing: 'chunk' lays all documents end to end and cuts every `length` tokens; attention crosses documents.
    'best_fit' cuts only documents longer than a row and packs the pieces (arXiv 2404.10830); none attends to another.
    """

    def __init__(
        self, *, length: Annotated[int, Ge(2)] = 256, packing: Literal["chunk", "best_fit"] = "chunk", column: str = "text"
    ) -> None:
        self.length, self.packing, self.column = length, packing, column

    def build(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: Context) -> Examples:
        store = token_store(corpus, tokenizer, context, self.column)
        rows = Chunks if self.packing == "chunk" else BestFit
        return rows(store, self.length, pad_token(tokenizer))


class Chunks:
    """Row i holds tokens i * length ... (i + 1) * length - 1 of the store; the last may be shorter, filled with `pad`.

    batch: input_ids (batch, length), labels the same with -100 where there is only padding.
    """

    def __init__(self, store: TokenStore, length: int, pad: int) -> None:
        self.store, self.length, self.pad = store, length, pad
        self.total = len(store.tokens)

    def __len__(self) -> int:
        return -(-self.total // self.length)

    def windows(self, indices: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        """Token ids of rows (len(indices), length), and which of them are tokens; None when all are."""
        at = np.asarray(indices, dtype=np.int64)[:, None] * self.length + np.arange(self.length)
        if not len(at) or at[:, -1].max() < self.total:
            return np.asarray(self.store.tokens[at], dtype=np.int64), None
        inside = at < self.total
        ids = np.asarray(self.store.tokens[np.minimum(at, self.total - 1)], dtype=np.int64)
        return np.where(inside, ids, self.pad), inside

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        ids, inside = self.windows(indices)
        labels = ids.copy() if inside is None else np.where(inside, ids, -100)
        tokens = ids.size if inside is None else int(inside.sum())
        return Batch(tokens=tokens, samples=len(ids), input_ids=torch.from_numpy(ids), labels=torch.from_numpy(labels))

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        starts = np.asarray(indices, dtype=np.int64) * self.length
        return [self.store.rows(start, min(start + self.length, self.total)) for start in starts.tolist()]


class BestFit:
    """Each row holds whole documents (or pieces of those longer than a row), then padding.

    batch: input_ids, labels, position_ids (batch, length): positions restart with each piece, and the first token of a
    piece and padding are no targets; attention_mask (batch, 1, length, length), True where a token may look, which is
    back to the start of its own piece. The mask takes length squared bytes a row.
    """

    def __init__(self, store: TokenStore, length: int, pad: int) -> None:
        self.store, self.length, self.pad = store, length, pad
        pieces = cut(np.asarray(store.offsets), length)
        row, begin = best_fit(pieces.length, length)
        order = np.lexsort((begin, row))
        self.start, self.size, self.document = pieces.start[order], pieces.length[order], pieces.document[order]
        self.begin = begin[order]
        self.first = np.searchsorted(row[order], np.arange(int(row.max()) + 2))
        self.causal = np.tri(length, dtype=bool)

    def __len__(self) -> int:
        return len(self.first) - 1

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        indices = np.asarray(indices, dtype=np.int64)
        first, count = self.first[indices], self.first[indices + 1] - self.first[indices]
        pieces = ranges(first, count)
        size = self.size[pieces]
        goes_to = np.repeat(np.arange(len(indices)) * self.length, count) + self.begin[pieces]
        here = ranges(goes_to, size)
        tokens = np.asarray(self.store.tokens[ranges(self.start[pieces], size)], dtype=np.int64)
        shape = len(indices), self.length
        ids, labels = np.full(shape, self.pad, np.int64), np.full(shape, -100, np.int64)
        position, piece = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        ids.ravel()[here] = labels.ravel()[here] = tokens
        labels.ravel()[goes_to] = -100
        position.ravel()[here] = ranges(np.zeros_like(size), size)
        piece.ravel()[here] = np.repeat(np.arange(1, len(pieces) + 1), size)
        mask = (piece[:, :, None] == piece[:, None, :]) & self.causal
        return Batch(
            tokens=len(here),
            samples=len(indices),
            input_ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(position),
            attention_mask=torch.from_numpy(mask[:, None]),
        )

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return [np.unique(self.document[self.first[i] : self.first[i + 1]]) for i in np.asarray(indices).tolist()]
