"""InfoNCE: each vector is to find its partner among those of the whole batch, of all processes, or among those of a queue.

Notable: losses come one per anchor, so that a mean with weights over any number of processes is exact; cosines and softmax are in
float32 whatever the precision; nothing here knows what the vectors are of, so pictures, texts and sounds use the same.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.contracts import Loss
from tilth.training.across import gather, rank, together
from tilth.training.parallel import local


class Found(NamedTuple):
    """losses (n,): -log softmax at the partner, of each anchor. right (n,): whether the partner was the nearest."""

    losses: Tensor
    right: Tensor

    def loss(self, weights: Tensor | None = None) -> Loss:
        """The mean over anchors, with `accuracy`; weights (n,), not negative: of the anchors in it."""
        if weights is None:
            return Loss(self.losses.mean(), count=len(self.losses), accuracy=self.right.float().mean())
        weights = weights.detach().float()
        whole = weights.sum()
        shares = weights / whole.clamp(min=torch.finfo(torch.float32).tiny)
        return Loss((shares * self.losses).sum(), count=whole, accuracy=(shares * self.right).sum())


class Temperature(nn.Module):
    """What cosines are divided by: `start`, or learnt from there as CLIP's is (arXiv 2103.00020, section 2.5), at least `least`.

    Learnt in logarithms, and brought back to `least` by `limit`, which `Objective.after_step` is to call. A parameter of one
    number, since FSDP shards no scalars.
    """

    def __init__(self, start: float, *, learned: bool = False, least: float = 0.01) -> None:
        super().__init__()
        self.least = least
        self.log = nn.Parameter(torch.full((1,), log(start)), requires_grad=learned)

    def forward(self) -> Tensor:
        """(1,)"""
        return self.log.exp()

    @torch.no_grad()
    def limit(self) -> None:
        """After a step: not below `least`. On the parameter, since a limit in `forward` would stop its gradient for good."""
        local(self.log.detach()).clamp_(min=log(self.least))


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)


def two_views(first: Tensor, second: Tensor, temperature: Tensor | float, training: bool) -> Found:
    """NT-Xent (SimCLR, arXiv 2002.05709, equation 1): two views (n, width) each of n examples, 2n anchors.

    A view's partner is the other view of its example; the others are both views of all other examples of all processes. training:
    whether all processes take part (`across.gather`).
    """
    first, second = unit(first), unit(second)
    firsts, seconds = gather(first, training), gather(second, training)
    own = _own(first, training)
    itself = torch.cat([own, own + len(firsts)])
    cosines = _cosines(torch.cat([first, second]), torch.cat([firsts, seconds]))
    logits = (cosines / temperature).scatter(1, itself[:, None], -torch.inf)
    return _found(logits, itself.roll(len(first)))


def pairs(first: Tensor, second: Tensor, temperature: Tensor | float, training: bool) -> Found:
    """InfoNCE in both directions (CLIP, arXiv 2103.00020, figure 3): n pairs (n, width) of two kinds of thing, 2n anchors.

    Each first is to find its second among the seconds of all processes, and the other way round. The first n losses are those of
    the firsts. training: see `two_views`.
    """
    first, second = unit(first), unit(second)
    own = _own(first, training)
    cosines = [_cosines(first, gather(second, training)), _cosines(second, gather(first, training))]
    return _found(torch.cat(cosines) / temperature, own.repeat(2))


def against_queue(queries: Tensor, keys: Tensor, queue: Tensor, temperature: Tensor | float) -> Found:
    """InfoNCE of queries (n, width) and their keys (n, width) against a queue (m, width) (MoCo, arXiv 1911.05722, equation 1).

    The queue holds vectors of length 1; no gradient is to pass to keys and queue.
    """
    queries = unit(queries)
    partners = (queries * unit(keys)).sum(1, keepdim=True)
    logits = torch.cat([partners, _cosines(queries, queue)], 1) / temperature
    return _found(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


def _own(rows: Tensor, training: bool) -> Tensor:
    """Where this process's rows stand among those of all."""
    start = rank() * len(rows) if together(training) else 0
    return torch.arange(start, start + len(rows), device=rows.device)


def _cosines(anchors: Tensor, candidates: Tensor) -> Tensor:
    with torch.autocast(anchors.device.type, enabled=False):
        return anchors @ candidates.T


def _found(logits: Tensor, partner: Tensor) -> Found:
    return Found(F.cross_entropy(logits, partner, reduction="none"), logits.detach().argmax(1) == partner)
