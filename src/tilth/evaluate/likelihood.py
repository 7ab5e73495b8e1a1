"""How likely a model finds given answers, token by token: what the metrics of the unlearning protocol are functions of.

Notable: sequences are laid end to end without padding and batched by length, so no result depends on who shared a batch or
on which side was padded; vocabulary logits exist only where a token is scored, and never for more than a bounded number of
tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.batches.text.ragged import offsets, ranges
from tilth.context import Progress
from tilth.contracts import Batch
from tilth.errors import TilthError
from tilth.evaluate.guarded import Predict
from tilth.unlearn.likelihood import IGNORED, answers

_TOKENS = 2**15  # inputs of one forward pass, padding included
_TOKENS_CPU = 2**11  # more would not stay in the caches
_LOGITS = 2**26  # float32 logits of one forward pass: 256 MB


@dataclass(frozen=True)
class Sequences:
    """Sequences laid end to end. ids (tokens,); starts (sequences + 1,): where each begins; scored (tokens,): bool, the targets.

    The first token of a sequence is never a target: nothing predicts it.
    """

    ids: np.ndarray
    starts: np.ndarray
    scored: np.ndarray

    @classmethod
    def of_rows(cls, input_ids: np.ndarray, labels: np.ndarray, attention_mask: np.ndarray) -> Sequences:
        """From padded arrays (sequences, tokens), padded on either side; labels -100 outside the targets."""
        inside = attention_mask.astype(bool)
        scored = labels != IGNORED
        scored[np.arange(len(labels)), inside.argmax(1)] = False
        return cls(input_ids[inside], offsets(inside.sum(1)), scored[inside])


@dataclass(frozen=True)
class TokenStatistics:
    """log_probability (tokens,) in nats and hits (tokens,) bool, whether the token is the most likely one, of all scored tokens.

    starts (sequences + 1,): the tokens of sequence i lie at starts[i]:starts[i + 1].
    mean, variance (tokens,): of log p under the model's own distribution at that position, where they were asked for.
    """

    log_probability: np.ndarray
    hits: np.ndarray
    starts: np.ndarray
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None

    @cached_property
    def count(self) -> np.ndarray:
        """Scored tokens of each sequence: n."""
        return np.diff(self.starts)

    @cached_property
    def nll(self) -> np.ndarray:
        """-log p of each sequence's scored tokens, in nats, summed: float64 (sequences,)."""
        total = np.concatenate([np.zeros(1), np.cumsum(self.log_probability, dtype=np.float64)])
        return -np.diff(total[self.starts])

    @cached_property
    def average(self) -> np.ndarray:
        """nll / n: nats per token; 0 for a sequence without scored tokens."""
        return self.nll / np.maximum(self.count, 1)


def merged(parts: Sequence[tuple[np.ndarray, TokenStatistics]]) -> TokenStatistics:
    """One set of statistics of sequences that were scored apart; with each part, the numbers of its sequences."""
    count = np.zeros(sum(len(rows) for rows, _ in parts), dtype=np.int64)
    for rows, found in parts:
        count[rows] = found.count
    starts = offsets(count)
    places = [ranges(starts[rows], found.count) for rows, found in parts]

    def joined(name: str) -> np.ndarray | None:
        values = [getattr(found, name) for _, found in parts]
        if any(value is None for value in values):
            return None
        out = np.empty(int(starts[-1]), dtype=values[0].dtype)
        for place, value in zip(places, values, strict=True):
            out[place] = value
        return out

    log_probability, hits = joined("log_probability"), joined("hits")
    assert log_probability is not None and hits is not None
    return TokenStatistics(log_probability, hits, starts, joined("mean"), joined("variance"))


def token_statistics(
    model: nn.Module,
    sequences: Sequences,
    *,
    moments: bool = False,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    predict: Predict = answers,
) -> TokenStatistics:
    """Statistics of every scored token of `sequences` under a causal `model`; in order, whatever the batches were.

    moments: also mean and variance of log p over the vocabulary (Min-K%++). batch_tokens: inputs of one forward pass, padding
    included (None: what suits the device). predict: what the model says at the answers of a batch, if not its own. Raises TilthError when the model gives something that is not a number.
    """
    scored = np.concatenate([[0], np.cumsum(sequences.scored)])[sequences.starts]
    found = np.zeros((4 if moments else 2, int(scored[-1])), dtype=np.float32)
    progress = progress or Progress()
    with evaluating(model) as device:
        progress.start("likelihood", len(sequences.starts) - 1, "examples")
        done = 0
        batch_tokens = batch_tokens or (_TOKENS_CPU if device.type == "cpu" else _TOKENS)
        for rows in _batches(sequences, batch_tokens, _vocabulary(model)):
            lengths = np.diff(sequences.starts)[rows]
            width = int(lengths.max())
            tokens = ranges(sequences.starts[rows], lengths)
            labels = np.where(sequences.scored[tokens], sequences.ids[tokens].astype(np.int64), IGNORED)
            batch = Batch(
                input_ids=_padded(sequences.ids[tokens], lengths, width, 0),
                labels=_padded(labels, lengths, width, IGNORED),
            )
            predicted = predict(model, batch.to(device))
            there = ranges(scored[rows], np.diff(scored)[rows])
            found[:, there] = _statistics(predicted.logits, predicted.targets, moments).cpu().numpy()
            done += len(rows)
            progress.update(done)
        progress.end()
    if not np.isfinite(found[0]).all():
        raise TilthError(
            "the model gives probabilities that are not numbers",
            hint="Its weights overflowed: lower the learning rate it was trained or unlearned with.",
        )
    return TokenStatistics(found[0], found[1].astype(bool), scored, *(found[2:] if moments else ()))


def context_length(model: Any) -> int:
    """The most tokens `model` can see; 2048 where its configuration does not say."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2048)


def _statistics(logits: Tensor, targets: Tensor, moments: bool) -> Tensor:
    """Rows log p and hit, and mean and variance of log p if asked for: (2 or 4, tokens)."""
    highest, best = logits.max(-1)
    chosen, hit = logits.gather(1, targets[:, None])[:, 0], (best == targets).float()
    if not moments:
        total = logits.sub_(highest[:, None]).exp_().sum(-1)  # in place: logits are the largest thing there is
        return torch.stack([chosen - highest - total.log(), hit])
    log_probability = logits.log_softmax(-1)
    weight = log_probability.exp()
    finite = log_probability.clamp(min=torch.finfo(torch.float32).min / 2)  # or 0 * -inf would be not a number
    mean = (weight * finite).sum(-1)
    variance = (weight * (finite - mean[:, None]).square()).sum(-1)
    return torch.stack([log_probability.gather(1, targets[:, None])[:, 0], hit, mean, variance])


def _padded(values: np.ndarray, lengths: np.ndarray, width: int, fill: int) -> Tensor:
    """Rows of int64 (len(lengths), width), filled up on the right, where a causal model does not look."""
    rows = np.full((len(lengths), width), fill, dtype=np.int64)
    rows[np.arange(width) < lengths[:, None]] = values
    return torch.from_numpy(rows)


def _batches(sequences: Sequences, batch_tokens: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Numbers of sequences, longest first, in batches of bounded inputs and logits."""
    lengths = np.diff(sequences.starts)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    room = max(1, min(batch_tokens, _LOGITS // vocabulary))
    at = 0
    while at < len(order):
        rows = order[at : at + max(1, room // int(lengths[order[at]]))]
        at += len(rows)
        yield rows


def _vocabulary(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    return int(config.get_text_config().vocab_size) if config is not None else 1
