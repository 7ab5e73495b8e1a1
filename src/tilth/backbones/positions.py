"""Positions of patches in any number of dimensions: sine-cosine tables, and tables brought to another grid.

Notable: a sine-cosine table is a function of coordinates, so a coarser or finer grid, or another ground distance, is other
coordinates and not an interpolated table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tilth.errors import TilthError


def coordinates(grid: Sequence[int], trained: Sequence[int] | None = None) -> Tensor:
    """Of every patch, raster order: float32 (patches, dims). On another grid than the `trained` one they are stretched to it,
    patch centres on patch centres as an interpolated table has them."""
    axes = [torch.arange(extent, dtype=torch.float32) for extent in grid]
    if trained is not None:
        axes = [(axis + 0.5) * (old / len(axis)) - 0.5 for axis, old in zip(axes, trained, strict=True)]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], 1)


def sincos(places: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Sine-cosine table (..., width) of coordinates (..., dims): for each axis in turn sin then cos of place * temperature^(-j/n).

    n = width / (2 dims) frequencies per axis (MAE, arXiv 2111.06377; volumes as in arXiv 2502.08347). Raises TilthError when the
    width is not a multiple of 2 dims.
    """
    dims = places.shape[-1]
    if width % (2 * dims):
        raise TilthError(
            f"a width of {width} does not split into sine and cosine of {dims} axes",
            where="width",
            hint=f"Use a multiple of {2 * dims}, or learned positions.",
        )
    count = width // (2 * dims)
    rates = temperature ** (-torch.arange(count, dtype=torch.float32, device=places.device) / count)
    angles = places[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def interpolated(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """A learned table (1, patches, width) brought from one grid to another: cubic in two dimensions, else linear."""
    if tuple(old) == tuple(new):
        return table
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(old)]
    spread = table.transpose(1, 2).unflatten(2, tuple(old))
    return F.interpolate(spread, size=tuple(new), mode=mode, align_corners=False).flatten(2).transpose(1, 2)
