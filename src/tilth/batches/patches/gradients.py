"""Gradient maps of signals, pictures and volumes, as targets that say where edges are and not how bright they lie.

Notable: one rule for any number of axes; box sums are means along one axis after another, so they cost a window's side and not its
area; nothing here has a gradient of its own, since targets are not learnt through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tilth.errors import TilthError

# The Sobel filters of three and five taps: what values one, two ... steps ahead, less those as far behind, weigh; smoothing taps.
_TAPS = {3: ((1.0,), (1.0, 2.0, 1.0)), 5: ((2.0, 1.0), (1.0, 4.0, 6.0, 4.0, 1.0))}
_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@torch.no_grad()
def sobel(values: Tensor, taps: int = 3) -> Tensor:
    """Derivatives along every axis, (batch, axes, *size), of values (batch, 1, *size); taps: 3 or 5 along each axis.

    Per step of one sample: a ramp of slope 1 has derivative 1 (image libraries leave out that division, by 8 for 3 x 3 and by 128
    for 5 x 5). Values are mirrored at the edges without repeating the last.
    """
    padded = _mirrored(values, taps // 2)
    maps = []
    for along in range(2, values.ndim):
        part = _derivative(padded, _TAPS[taps][0], along)
        for axis in range(2, values.ndim):
            if axis != along:
                part = _smoothed(part, _TAPS[taps][1], axis)
        maps.append(part)
    return torch.cat(maps, 1)


@torch.no_grad()
def sobel_magnitude(values: Tensor, taps: int = 5) -> Tensor:
    """(batch, 1, *size): the mean over axes of the derivatives' absolute values, for pictures .5 |G_x| + .5 |G_y|
    (Uni4Eye, arXiv 2203.04614). See `sobel`."""
    return sobel(values, taps).abs().mean(1, keepdim=True)


@torch.no_grad()
def ratio_gradient(values: Tensor, radius: int, offset: float = 1e-2) -> Tensor:
    """sqrt(sum over axes of log(one side / other side)^2), same shape as values (batch, channels, *size), which must not be negative.

    The sides are means over the halves of a cube of 2 radius + 1 samples about each one, both with the middle plane; `offset` is
    added to all values, which are mirrored at the edges. Multiplicative noise (speckle) has the same effect at any brightness
    (SAR-JEPA, arXiv 2311.15153). Raises TilthError for a radius that the input's sides do not exceed.
    """
    if radius >= min(values.shape[2:]):
        raise TilthError(
            f"a gradient of radius {radius} has no place in an input of {'x'.join(map(str, values.shape[2:]))}",
            where="radii",
            hint=f"Use a radius of at most {min(values.shape[2:]) - 1}.",
        )
    axes = values.ndim - 2
    padded = _mirrored(values, radius) + offset
    square = torch.zeros_like(values)
    for along in range(axes):
        halves = padded
        for axis in range(axes):
            sides = [1] * axes
            sides[axis] = radius + 1 if axis == along else 2 * radius + 1
            halves = _POOLS[axes](halves, sides, stride=1)
        logs, length = halves.log_(), values.shape[2 + along]
        square += (logs.narrow(2 + along, 0, length) - logs.narrow(2 + along, radius, length)).square_()
    return square.sqrt_()


def ratio_gradients(values: Tensor, radii: Sequence[int], offset: float = 1e-2) -> Tensor:
    """`ratio_gradient` at several radii as channels, radius by radius: (batch, radii * channels, *size)."""
    return torch.cat([ratio_gradient(values, radius, offset) for radius in radii], 1)


def _mirrored(values: Tensor, by: int) -> Tensor:
    if by >= min(values.shape[2:]):
        raise TilthError(f"an input of {'x'.join(map(str, values.shape[2:]))} is too small to be mirrored by {by} at its edges")
    return F.pad(values, [by] * (2 * (values.ndim - 2)), mode="reflect")


def _derivative(values: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """Along one axis, of what lies wholly within; differences first, so that of equal values nothing is left."""
    reach = len(weights)
    length = values.shape[axis] - 2 * reach
    total = torch.zeros((), dtype=values.dtype, device=values.device)
    for step, weight in enumerate(weights, 1):
        difference = values.narrow(axis, reach + step, length) - values.narrow(axis, reach - step, length)
        total = total + weight * difference
    return total / sum(2 * step * weight for step, weight in enumerate(weights, 1))


def _smoothed(values: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """Weighted means along one axis, of what lies wholly within."""
    length = values.shape[axis] - len(weights) + 1
    total = torch.zeros((), dtype=values.dtype, device=values.device)
    for step, weight in enumerate(weights):
        total = total + weight * values.narrow(axis, step, length)
    return total / sum(weights)
