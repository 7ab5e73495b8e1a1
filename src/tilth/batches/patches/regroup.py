"""Tokens of a grid in blocks: which block each belongs to, and the order in which blocks come one after another.

Notable: an order is a list of token numbers, found by sorting and not by reshaping, so blocks need not divide the grid (those at the
far ends are smaller) and whoever can gather tokens can gather them in block order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_numbers(grid: Sequence[int], block: int, device: torch.device | str = "cpu") -> Tensor:
    """Of every token in raster order, the number of its block, blocks in raster order: int64 (tokens,).

    block: side of a block in tokens along every axis; at the far end of an axis it does not divide they are smaller.
    """
    numbers = torch.zeros((), dtype=torch.int64, device=device)
    for extent in grid:
        blocks = -(-extent // block)
        numbers = numbers[..., None] * blocks + torch.arange(extent, device=device) // block
    return numbers.flatten()


def block_order(grid: Sequence[int], block: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers of all tokens, block by block, in raster order within each: int64 (tokens,)."""
    return block_numbers(grid, block, device).argsort(stable=True)


def regroup(tokens: Tensor, grid: Sequence[int], block: int) -> Tensor:
    """tokens (batch, tokens, ...) from raster order to block order."""
    return tokens[:, block_order(grid, block, tokens.device)]


def ungroup(tokens: Tensor, grid: Sequence[int], block: int) -> Tensor:
    """The inverse of `regroup`."""
    return tokens[:, block_order(grid, block, tokens.device).argsort()]
