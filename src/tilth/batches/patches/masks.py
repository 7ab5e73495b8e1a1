"""Which patches are hidden: whole batches at once, exact counts, a function of each example's key.

Notable: a mask is two lists of patch numbers, each ascending, so that encoders gather what they see and heads run only where
something is to be predicted; the random one is a ranking of uniform numbers, so its counts hold for every example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tilth.batches import draws


@dataclass(frozen=True)
class Mask:
    """kept, hidden: int64 (examples, n): numbers of the patches that are seen and that are not, ascending."""

    kept: Tensor
    hidden: Tensor

    @property
    def tokens(self) -> int:
        """Patches of an example."""
        return self.kept.shape[1] + self.hidden.shape[1]

    def where(self) -> Tensor:
        """True where a patch is hidden: bool (examples, tokens)."""
        found = torch.zeros(len(self.kept), self.tokens, dtype=torch.bool, device=self.kept.device)
        return found.scatter(1, self.hidden, True)


def pick(values: Tensor, numbers: Tensor) -> Tensor:
    """values (batch, tokens, width) or (1, tokens, width) at numbers (batch, n): (batch, n, width)."""
    values = values.expand(len(numbers), -1, -1)
    return values.gather(1, numbers[:, :, None].expand(-1, -1, values.shape[-1]))


def ranked(scores: Tensor, hidden: int) -> Mask:
    """Hides the `hidden` patches of highest score in every example: scores (examples, tokens)."""
    order = scores.argsort(1)
    cut = scores.shape[1] - hidden
    return Mask(order[:, :cut].sort(1).values, order[:, cut:].sort(1).values)


def random(keys: Tensor, tokens: int, hidden: int, name: str = "mask") -> Mask:
    """`hidden` of the patches, every choice equally likely."""
    return ranked(draws.uniform(keys, name, tokens), hidden)


def blocks(keys: Tensor, grid: Sequence[int], block: int, ratio: float, name: str = "mask") -> Mask:
    """Cubes of `block` patches a side, ceil(ratio * cubes) of them hidden (SimMIM, arXiv 2111.09886, section 3.2).

    The grid must be a multiple of `block` along every axis.
    """
    if any(extent % block for extent in grid):
        raise ValueError(f"blocks of {block} patches do not divide a grid of {'x'.join(map(str, grid))}")
    coarse = [extent // block for extent in grid]
    count = prod(coarse)
    chosen = random(keys, count, -int(-ratio * count // 1), name).where().reshape(len(keys), *coarse)
    for axis in range(len(coarse)):
        chosen = chosen.repeat_interleave(block, axis + 1)
    return from_where(chosen.flatten(1), -int(-ratio * count // 1) * block ** len(coarse))


def tubes(keys: Tensor, grid: Sequence[int], hidden: int, name: str = "mask") -> Mask:
    """The same `hidden` places at every step of the first axis (VideoMAE, arXiv 2203.12602): of a grid (time, ...)."""
    flat = random(keys, prod(grid[1:]), hidden, name).where()
    return from_where(flat[:, None].expand(-1, grid[0], -1).flatten(1), hidden * grid[0])


def from_where(where: Tensor, hidden: int) -> Mask:
    """A mask from bool (examples, tokens), of which exactly `hidden` are true in each."""
    order = where.to(torch.uint8).argsort(dim=1, stable=True)
    cut = where.shape[1] - hidden
    return Mask(order[:, :cut], order[:, cut:])
