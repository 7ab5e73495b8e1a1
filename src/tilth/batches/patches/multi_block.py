"""Rectangular blocks of patches of pictures: I-JEPA's targets with their context, and the block-wise masks of BEiT and data2vec.

Notable: counts that would differ between examples are made equal by a rule that looks at the grid alone, so that an example's mask
does not depend on its batch; all blocks of a batch are drawn at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tilth.batches import draws
from tilth.batches.patches.masks import Mask, ranked
from tilth.errors import TilthError

Range = tuple[float, float]
_ROUNDS = 16  # blocks drawn for a block-wise mask; the first few fill it


@dataclass(frozen=True)
class MultiBlock:
    """context (examples, n): numbers of the patches that are seen, ascending. targets (examples, blocks, m): those of each block,
    ascending, then patches that do not belong to it where `valid` (of the same shape) is False. None: all are valid."""

    context: Tensor
    targets: Tensor
    valid: Tensor | None


def multi_block(
    keys: Tensor,
    grid: Sequence[int],
    *,
    targets: int = 4,
    scale: Range = (0.15, 0.2),
    aspect: Range = (0.75, 1.5),
    context_scale: Range = (0.85, 1.0),
    name: str = "blocks",
) -> MultiBlock:
    """`targets` blocks that may overlap, and a square context block without their patches (I-JEPA, arXiv 2301.08243, section 3).

    scale, aspect: bounds of a target's share of the patches and of height / width; both are uniform, then the nearest shape of
    whole patches within both bounds is taken (within the bounds of the share alone where a grid has no other). context_scale:
    the same of the context block.

    Every context has floor(a (1 - targets m / tokens)) patches, a those of the smallest context block and m those of the
    largest target: what would be left of the one if targets never overlapped. They are drawn from what is left of the context
    block; should that be too little, the block is the whole picture. (The official code cuts all contexts of a batch to the
    shortest, about as many, and drops the bottom of the pictures.) Raises TilthError where nothing would be left.
    """
    for named, (low, high) in (("target_scale", scale), ("aspect", aspect), ("context_scale", context_scale)):
        if not 0 < low <= high:
            raise TilthError(f"bounds from {low} to {high}", where=named, hint="Two numbers, 0 < smallest <= largest.")
    height, width = _sides(grid)
    tokens = height * width
    shapes, squares = _shapes(height, width, scale, aspect), _shapes(height, width, context_scale, (1.0, 1.0))
    areas = [tall * wide for tall, wide in shapes]
    most = max(areas, default=tokens)
    seen = int(min(tall * wide for tall, wide in squares) * (1 - targets * most / tokens)) if squares else 0
    if seen < 1:
        raise TilthError(
            f"{targets} blocks of up to {most} of {tokens} patches leave nothing to predict them from",
            where="target_scale",
            hint="Use fewer or smaller targets, a larger context_scale, or smaller patches.",
        )
    drawn = draws.uniform(keys, f"{name}/targets", targets, 4)
    blocks, sizes = _rectangles(drawn, shapes, scale, aspect, (height, width))
    order = blocks.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    valid = torch.arange(most, device=keys.device) < sizes[..., None] if min(areas) < most else None
    around, _ = _rectangles(draws.uniform(keys, f"{name}/context", 1, 4), squares, context_scale, (1.0, 1.0), (height, width))
    # The lowest ranks: of the context block first, then of the picture, never of a target.
    rank = draws.uniform(keys, f"{name}/order", tokens) + torch.where(blocks.any(1), 2.0, (~around[:, 0]).float())
    return MultiBlock(rank.argsort(1)[:, :seen].sort(1).values, order, valid)


def block_wise(
    keys: Tensor, grid: Sequence[int], hidden: int, *, smallest: int = 16, aspect: float = 0.3, name: str = "mask"
) -> Mask:
    """Blocks until `hidden` patches are hidden (BEiT, arXiv 2106.08254, algorithm 1).

    A block has `smallest` patches or more, up to as many as are missing, and a height / width log-uniform in [aspect, 1 / aspect].
    Exactly `hidden`: what is too much of the last block is left out at random, where the original would draw another block;
    should sixteen blocks not do, random patches make up for the rest.
    """
    height, width = _sides(grid)
    smallest = min(smallest, hidden)
    drawn = draws.uniform(keys, name, _ROUNDS, 4)
    ratios = torch.exp((1 - 2 * drawn[..., 1]) * math.log(aspect))
    covered = torch.full((len(keys), height * width), _ROUNDS, device=keys.device)  # by which block first
    for number in range(_ROUNDS):
        missing = hidden - (covered < _ROUNDS).sum(1)
        area = smallest + drawn[:, number, 0] * (missing - smallest).clamp(min=0)
        tall = (area * ratios[:, number]).sqrt().round().clamp(1, height)
        wide = (area / ratios[:, number]).sqrt().round().clamp(1, width)
        block = _inside(drawn[:, number, 2:], tall, wide, (height, width))
        covered = torch.where(block, covered.clamp(max=number), covered)
    return ranked(-(covered + draws.uniform(keys, f"{name}/order", height * width)), hidden)


def _sides(grid: Sequence[int]) -> tuple[int, int]:
    if len(grid) != 2:
        raise TilthError(f"these blocks are of pictures, whose patches lie along two axes, not {len(grid)}")
    return grid[0], grid[1]


@cache
def _shapes(height: int, width: int, scale: Range, aspect: Range) -> list[tuple[int, int]]:
    """(height, width) of the blocks of whole patches within the bounds; see `multi_block`."""
    tokens, near = height * width, 1e-6
    every = [(tall, wide) for tall in range(1, height + 1) for wide in range(1, width + 1)]
    small = [(tall, wide) for tall, wide in every if tall * wide <= scale[1] * tokens + near]
    within = [(tall, wide) for tall, wide in small if tall * wide >= scale[0] * tokens - near]
    formed = [(tall, wide) for tall, wide in within if aspect[0] - near <= tall / wide <= aspect[1] + near]
    return formed or within or small


def _rectangles(
    drawn: Tensor, shapes: list[tuple[int, int]], scale: Range, aspect: Range, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Blocks (examples, blocks, tokens), True within, and their areas (examples, blocks), from uniform numbers (examples, blocks, 4)."""
    area = (scale[0] + (scale[1] - scale[0]) * drawn[..., 0]) * (grid[0] * grid[1])
    ratio = aspect[0] + (aspect[1] - aspect[0]) * drawn[..., 1]
    wanted = torch.stack([area * ratio, area / ratio], -1).log() / 2
    known = torch.tensor(shapes, dtype=torch.float32, device=drawn.device)
    nearest = (wanted[..., None, :] - known.log()).square().sum(-1).argmin(-1)
    tall, wide = known[nearest].unbind(-1)
    return _inside(drawn[..., 2:], tall, wide, grid), tall * wide


def _inside(places: Tensor, tall: Tensor, wide: Tensor, grid: tuple[int, int]) -> Tensor:
    """True in blocks (..., tokens) of `tall` by `wide` patches (...), anywhere in the grid: places are uniform numbers (..., 2)."""
    spans = []
    for axis, (extent, side) in enumerate(zip(grid, (tall, wide), strict=True)):
        start = torch.floor(places[..., axis] * (extent - side + 1))[..., None]
        patches = torch.arange(extent, device=places.device)
        spans.append((patches >= start) & (patches < start + side[..., None]))
    return (spans[0][..., :, None] & spans[1][..., None, :]).flatten(-2)
