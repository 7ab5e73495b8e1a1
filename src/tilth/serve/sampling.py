"""Drawing tokens for rows that each have their own temperature, top_p and seed.

Notable: token i of a row is drawn by the row's own i-th uniform number, so what a request with a seed gives does not depend
on the requests it shares a batch with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. seed, index: of the request, and of the continuation within it."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    index: int = 0

    def uniforms(self, count: int) -> np.ndarray:
        """`count` numbers in [0, 1)."""
        return np.random.default_rng([self.seed % 2**64, self.index]).random(count)


class Sampler(LogitsProcessor):
    """Leaves rows of temperature 0 as they are; of the others leaves only the token drawn, so that greedy decoding takes it.

    samplings: one per row. draws(): the uniform number of each row at this step.
    """

    def __init__(self, samplings: Sequence[Sampling], draws: Callable[[], list[float]]) -> None:
        self.rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
        self.temperature = torch.tensor([samplings[row].temperature for row in self.rows])[:, None]
        self.top_p = torch.tensor([samplings[row].top_p for row in self.rows])[:, None]
        self.draws = draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.rows:
            return scores
        rows = torch.tensor(self.rows, device=scores.device)
        draws = torch.tensor(self.draws(), device=scores.device)[rows, None]
        token = draw(scores[rows], self.temperature.to(scores.device), self.top_p.to(scores.device), draws)
        only = torch.full_like(scores[rows], -torch.inf).scatter_(1, token, 0.0)
        return scores.index_copy(0, rows, only)


def draw(scores: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """One token per row, (rows, 1), of the smallest set of likeliest tokens that has probability top_p; scores (rows, vocabulary).

    Inverse transform sampling along the sorted probabilities; temperature, top_p, uniform: (rows, 1).
    """
    probability, order = (scores.float() / temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
    up_to = probability.cumsum(-1)
    kept = up_to - probability < top_p
    kept[:, 0] = True
    mass = (probability * kept).sum(-1, keepdim=True)
    place = (up_to <= uniform * mass).sum(-1, keepdim=True)
    return order.gather(1, torch.minimum(place, kept.sum(-1, keepdim=True) - 1))
