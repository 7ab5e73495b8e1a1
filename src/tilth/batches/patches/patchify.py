"""A signal, picture or volume as a sequence of patches, and back.

Notable: one rule for any number of dimensions; a patch's numbers are in the order of a convolution kernel (channel, then the
axes), so that a patch embedding is a matrix product and loads kernels by flattening them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from tilth.errors import TilthError


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis. Raises TilthError where the patch does not divide the size."""
    if len(size) != len(patch) or any(extent % edge for extent, edge in zip(size, patch, strict=True)):
        shown = ["x".join(map(str, numbers)) for numbers in (patch, size)]
        fitting = [edge for edge in range(1, min(size) + 1) if all(extent % edge == 0 for extent in size)]
        raise TilthError(
            f"patches of {shown[0]} do not divide an input of {shown[1]}",
            where="patch",
            hint=f"Patches of equal sides that do: {', '.join(map(str, fitting[:12]))}. Or bring the data to another 'size'.",
        )
    return tuple(extent // edge for extent, edge in zip(size, patch, strict=True))


def patchify(values: Tensor, patch: Sequence[int]) -> Tensor:
    """(batch, channels, *size) -> (batch, patches, channels * prod(patch)); patches in raster order, the last axis fastest."""
    batch, channels, *size = values.shape
    grid = grid_of(size, patch)
    split = values.reshape(batch, channels, *(n for pair in zip(grid, patch, strict=True) for n in pair))
    dims = len(grid)
    order = [0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2)]
    return split.permute(order).reshape(batch, prod(grid), channels * prod(patch))


def unpatchify(patches: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """The inverse: (batch, patches, channels * prod(patch)) -> (batch, channels, *size)."""
    batch, dims = patches.shape[0], len(grid)
    channels = patches.shape[-1] // prod(patch)
    split = patches.reshape(batch, *grid, channels, *patch)
    order = [0, 1 + dims, *(axis for n in range(dims) for axis in (1 + n, 2 + dims + n))]
    return split.permute(order).reshape(batch, channels, *(g * p for g, p in zip(grid, patch, strict=True)))


def normalised(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch to mean 0 and variance 1, (x - mean) / sqrt(var + eps) with the unbiased variance (MAE, arXiv 2111.06377)."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()
