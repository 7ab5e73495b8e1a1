"""Ways to spoil the embeddings of some tokens: noise, zeros, flipped signs, a shift; and two controls that only reorder.

Notable: everything random is drawn from a generator of the row's own, on the CPU, so the same prompt is spoilt alike on every
call, in every batch and on every device; the embeddings that come in are never written to.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tilth.errors import TilthError

How = Literal["noise", "zero", "flip", "shift", "reverse", "shuffle"]
Dimensions = Literal["first", "random", "largest"]
COUNTED = ("zero", "flip")  # their strength says how many dimensions they take
REORDERING = ("reverse", "shuffle")  # they have no strength


def corrupt(
    embeddings: Tensor,
    where: Tensor,
    how: How,
    strength: Tensor,
    generators: list[torch.Generator],
    *,
    dimensions: Dimensions = "first",
    count: int = 1,
) -> Tensor:
    """Embeddings (batch, tokens, width) of which those at `where` (batch, tokens; bool) are spoilt   (arXiv 2406.07933, section 3)

    noise: + N(0, strength^2) on `count` dimensions; shift: + strength on them (negative: minus); zero, flip: `strength`
    dimensions, rounded, become 0 or change sign; reverse, shuffle: the tokens change places. strength: one number (1,), or
    for noise and shift one for each dimension (count,). dimensions: the first ones; random ones, the same for a whole row;
    or of each token those with the largest absolute value. generators: one for each row.
    """
    if how not in get_args(How):
        raise TilthError(f"there is no corruption '{how}'", hint=f"Known: {', '.join(get_args(How))}.")
    width = embeddings.shape[-1]
    taken = min(width, round(float(strength[0])) if how in COUNTED else count)
    spoilt = embeddings.clone()
    for row, generator in enumerate(generators):
        chosen = where[row].nonzero()[:, 0]
        tokens = embeddings[row, chosen]
        if how in REORDERING:
            order = torch.randperm(len(chosen), generator=generator) if how == "shuffle" else torch.arange(len(chosen)).flip(0)
            spoilt[row, chosen] = tokens[order.to(tokens.device)]
            continue
        at = _dimensions(tokens, dimensions, taken, generator)
        old = tokens.gather(1, at)
        if how == "zero":
            new = torch.zeros_like(old)
        elif how == "flip":
            new = -old
        else:
            by = torch.randn(old.shape, generator=generator) * strength if how == "noise" else strength.expand(old.shape)
            new = old + by.to(old)
        spoilt[row, chosen] = tokens.scatter(1, at, new)
    return spoilt


def _dimensions(tokens: Tensor, dimensions: Dimensions, count: int, generator: torch.Generator) -> Tensor:
    """Which dimensions of each token: (tokens, count)."""
    if dimensions == "largest":
        return tokens.abs().topk(count, dim=1).indices
    width = tokens.shape[1]
    order = torch.randperm(width, generator=generator) if dimensions == "random" else torch.arange(width)
    return order[:count].to(tokens.device).expand(len(tokens), count)
