"""Small windows of a grid of patches, drawn for every picture by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tilth.batches import draws
from tilth.errors import TilthError


def windows(keys: Tensor, grid: Sequence[int], side: int, count: int, name: str = "windows") -> Tensor:
    """Numbers of the patches of `count` windows of `side` patches along each axis, in raster order: int64 (examples, count, side^axes).

    An example's windows all begin at different places along every axis (LoMaR, arXiv 2206.00790); examples draw by themselves.
    Raises TilthError where there are fewer places than windows.
    """
    if min(grid) - side + 1 < count:
        raise TilthError(
            f"{count} windows of {side} patches do not begin at different places of a grid of {'x'.join(map(str, grid))}",
            where="windows",
            hint="Use fewer or smaller windows, smaller patches, or larger pictures.",
        )
    numbers = torch.zeros(len(keys), count, 1, dtype=torch.int64, device=keys.device)
    within = torch.arange(side, device=keys.device)
    for axis, extent in enumerate(grid):
        begins = draws.uniform(keys, f"{name}/{axis}", extent - side + 1).argsort(1)[:, :count]
        along = begins[:, :, None] + within
        numbers = (numbers[..., None] * extent + along[:, :, None]).flatten(2)
    return numbers
