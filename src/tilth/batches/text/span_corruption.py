"""Span corruption for encoder-decoders (T5, arXiv 1910.10683, section 3.1.4; the sampler of t5.data.preprocessors).

Notable: every row has the same number of corrupted tokens and spans, so encoder and decoder inputs have fixed shapes and
no padding; the raw length is the longest that fills the encoder exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray

from tilth.batches.text.encoding import end_token, pad_token
from tilth.batches.text.packed import Chunks
from tilth.batches.text.ragged import ranges
from tilth.batches.text.store import TokenStore, token_store
from tilth.batches.text.tokenizers import sentinel_names
from tilth.contracts import Batch, Examples, Noise
from tilth.errors import TilthError
from tilth.registry import method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tilth.context import Context
    from tilth.corpus import Corpus


@method("batches", "span_corruption")
class SpanCorruption:
    """Spans of the text are each replaced by one sentinel; the target names each sentinel and what it stands for.

    length: tokens the encoder sees, its sentinels and end token included. density: share of the raw tokens that is
    corrupted. mean_span: mean length of a span. What remains of the corpus beyond the last full row is not used; how
    much that is, is said while building.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Ge(4)] = 128,
        density: Annotated[float, Gt(0), Lt(1)] = 0.15,
        mean_span: Annotated[float, Ge(1)] = 3.0,
        column: str = "text",
    ) -> None:
        self.length, self.density, self.mean_span, self.column = length, density, mean_span, column

    def build(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: Context) -> Examples:
        rows = SpanRows(token_store(corpus, tokenizer, context, self.column), tokenizer, self)
        if not len(rows):
            raise TilthError(
                f"the corpus has {rows.unused} tokens, fewer than the {rows.raw} of one row",
                where=corpus.uri,
                hint="Lower batches.span_corruption.length.",
            )
        if rows.unused:
            context.progress.say(
                f"span_corruption: the last {rows.unused} tokens of {corpus.uri} do not fill a row and are not used"
            )
        return rows


class SpanRows:
    """Row i is made from tokens i * raw ... (i + 1) * raw - 1 of the store.

    batch: input_ids (batch, raw - noise + spans + 1), labels (batch, noise + spans + 1), both ending with the end token.
    raw, noise, spans: tokens of a row, how many are corrupted, in how many spans. unused: tokens beyond the last row.
    """

    def __init__(self, store: TokenStore, tokenizer: PreTrainedTokenizerBase, settings: SpanCorruption) -> None:
        self.raw, self.noise, self.spans = raw_length(settings.length, settings.density, settings.mean_span)
        self.chunks = Chunks(store, self.raw, pad_token(tokenizer))
        self.sentinels, self.end = _sentinels(tokenizer, self.spans), end_token(tokenizer)
        self.unused = len(store.tokens) - len(self) * self.raw

    def __len__(self) -> int:
        return self.chunks.total // self.raw

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        ids, _ = self.chunks.windows(indices)
        hidden = _parts(noise.uniform("span_corruption/hidden", self.noise - 1), self.noise, self.spans)
        clean = _parts(noise.uniform("span_corruption/clean", self.raw - self.noise - 1), self.raw - self.noise, self.spans)
        inputs, labels = corrupt(ids, clean, hidden, self.sentinels, self.end)
        tokens = inputs.size + labels.size
        return Batch(tokens=tokens, samples=len(ids), input_ids=torch.from_numpy(inputs), labels=torch.from_numpy(labels))

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return self.chunks.rows(indices)


def raw_length(length: int, density: float, mean_span: float) -> tuple[int, int, int]:
    """The most raw tokens whose inputs and targets, with their end tokens, each fit `length`; of them corrupted; spans.

    Rounding half to even, tokens first, then spans, as in T5: (128, 0.15, 3) corrupts 21 of 141 tokens in 7 spans.
    """
    longest = np.arange(2, int(length / (1 - density)) + int(mean_span) + 4)
    noise = np.clip(np.rint(longest * density), 1, longest - 1)
    spans = np.minimum(np.maximum(1, np.rint(noise / mean_span)), longest - noise)
    fitting = np.flatnonzero(np.maximum(longest - noise, noise) + spans + 1 <= length)[-1]
    return int(longest[fitting]), int(noise[fitting]), int(spans[fitting])


def corrupt(
    ids: NDArray[np.int64], clean: NDArray[np.int64], hidden: NDArray[np.int64], sentinels: NDArray[np.int64], end: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets of rows (batch, raw) whose runs alternate: clean[:, 0] tokens, hidden[:, 0], clean[:, 1] ...

    clean, hidden: (batch, spans), positive, with the same sums in every row. sentinels: ids of at least `spans` sentinels.
    """
    batch, spans = clean.shape
    runs = np.stack([clean, hidden], axis=2).reshape(-1)
    run = np.repeat(np.tile(np.arange(2 * spans), batch), runs).reshape(ids.shape)
    noisy, sentinel = run % 2 == 1, sentinels[run // 2]
    first = noisy.copy()
    first[:, 1:] &= run[:, 1:] != run[:, :-1]
    inputs = np.where(first, sentinel, ids)[first | ~noisy].reshape(batch, -1)
    lengths = hidden.reshape(-1)
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    targets = np.empty(int(lengths.sum()) + len(lengths), dtype=np.int64)
    targets[starts] = np.tile(sentinels[:spans], batch)
    targets[ranges(starts + 1, lengths)] = ids[noisy]
    column = np.full((batch, 1), end, dtype=np.int64)
    return np.hstack([inputs, column]), np.hstack([targets.reshape(batch, -1), column])


def _parts(scores: NDArray[np.float64], total: int, count: int) -> NDArray[np.int64]:
    """For each row of scores (batch, total - 1) a uniformly random way to write `total` as `count` positive numbers."""
    cuts = np.sort(np.argpartition(scores, count - 2, axis=1)[:, : count - 1], axis=1) + 1 if count > 1 else scores[:, :0]
    edges = np.zeros((len(scores), count + 1), dtype=np.int64)
    edges[:, 1:-1], edges[:, -1] = cuts, total
    return np.diff(edges, axis=1)


def _sentinels(tokenizer: PreTrainedTokenizerBase, count: int) -> NDArray[np.int64]:
    vocabulary = tokenizer.get_vocab()
    names = sentinel_names(count)
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise TilthError(
            f"span corruption needs {count} sentinels and the tokeniser has {count - len(missing)}",
            hint=f"Train it with `sentinels: {count}` or more, or lower `length` or `density`.",
        )
    return np.array([vocabulary[name] for name in names], dtype=np.int64)
