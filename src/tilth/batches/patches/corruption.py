"""Three ways of hiding tokens, one for each example: at random, all from a point on of which the next counts, or of which all count.

Notable: all three are the same thing to a network, an input some of whose patches say nothing and a set of patches to be told; so a
mixture is drawn per example, and what an example is asked does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tilth.batches.draws import normal, uniform
from tilth.batches.patches.patchify import grid_of, unpatchify

RANDOM, NEXT, NEXT_ALL = 0, 1, 2


@dataclass(frozen=True)
class Corruption:
    """hidden, target: bool (examples, tokens): patches that are not shown, and those of them that are to be told.

    way: int64 (examples,): RANDOM, NEXT or NEXT_ALL.
    """

    hidden: Tensor
    target: Tensor
    way: Tensor


def drawn(keys: Tensor, tokens: int, weights: Sequence[float], ratio: tuple[float, float]) -> Corruption:
    """One of the three ways for each example, with probabilities `weights` (random, next, next all), which sum to 1.

    Random: of share `ratio` of the patches (exactly int(share * tokens); the share uniform between the two), every choice equally
    likely. Next and next all: a cut k, uniform in 1 ... tokens - 1; patches from k on are hidden, and patch k or all of them asked
    for (arXiv 2405.16847, section 3).
    """
    drawn = uniform(keys, "corruption", 3)
    bounds = torch.tensor(weights, device=keys.device).cumsum(0)[:-1]
    way = (drawn[:, :1] >= bounds).sum(1)
    share = ratio[0] + (ratio[1] - ratio[0]) * drawn[:, 1:2]
    scattered = uniform(keys, "corruption/order", tokens).argsort(1).argsort(1) < (share * tokens).long()
    return at(way, 1 + ((tokens - 1) * drawn[:, 2]).long(), scattered)


def at(way: Tensor, cut: Tensor, scattered: Tensor) -> Corruption:
    """way, cut: int64 (examples,); scattered: bool (examples, tokens), what RANDOM hides."""
    place = torch.arange(scattered.shape[1], device=cut.device)
    at_random = (way == RANDOM)[:, None]
    hidden = torch.where(at_random, scattered, place >= cut[:, None])
    return Corruption(hidden, torch.where((way == NEXT)[:, None], place == cut[:, None], hidden), way)


def corrupted(values: Tensor, hidden: Tensor, patch: Sequence[int], keys: Tensor, fill: str) -> Tensor:
    """values (batch, channels, *size) with hidden patches (batch, tokens) replaced by zeros or by normal noise of variance 1."""
    where = spread(hidden, values, patch)
    put = normal(keys, "corruption/noise", *values.shape[1:]).to(values) if fill == "noise" else torch.zeros_like(values)
    return torch.where(where, put, values)


def spread(tokens: Tensor, like: Tensor, patch: Sequence[int]) -> Tensor:
    """What is said of patches (batch, tokens), said of every value: (batch, 1, *size of like)."""
    grid = grid_of(like.shape[2:], patch)
    return unpatchify(tokens[:, :, None].expand(-1, -1, prod(patch)), grid, patch)
