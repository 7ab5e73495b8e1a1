"""Crops of whole batches on their device: a fixed grid of base crops, random ones between them, and how much each shares with each.

Notable: all crops of a batch are one gather, wherever they lie and however many axes there are; labels come from the crops' places
alone, so what is done to a crop's content afterwards cannot change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor

from tilth.batches.draws import split, uniform
from tilth.contracts import Configured, Kind, use
from tilth.errors import TilthError
from tilth.registry import PositiveInt, method


@dataclass(frozen=True)
class CropGrid:
    """VoCo's crops (arXiv 2410.09890, section 3.2): base crops that tile a region, and random ones within it.

    sides: of every crop, in voxels. counts: base crops along each axis; along an axis with one, random crops do not move.
    """

    sides: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, crop: int | Sequence[int], grid: int | Sequence[int], axes: int) -> CropGrid:
        """For inputs with so many axes. One number for `crop`: of all sides; for `grid`: along all axes, but one of volumes' third.

        Raises TilthError for a list of another length, and for a grid of a single crop, which tells nothing.
        """
        sides = [crop] * axes if isinstance(crop, int) else list(crop)
        counts = ([grid] * min(axes, 2) + [1] * (axes - 2)) if isinstance(grid, int) else list(grid)
        if len(sides) != axes or len(counts) != axes:
            raise TilthError(
                f"'crop' and 'grid' have {len(sides)} and {len(counts)} numbers for inputs with {axes} axes",
                hint="Give one number, or one for each axis.",
            )
        if prod(counts) < 2:
            raise TilthError("a single base crop says nothing about place", where="grid", hint="Take at least 2 along an axis.")
        return cls(tuple(sides), tuple(counts))

    @property
    def region(self) -> tuple[int, ...]:
        """Sides of what the base crops tile."""
        return tuple(side * count for side, count in zip(self.sides, self.counts, strict=True))

    def bases(self) -> Tensor:
        """int64 (bases, axes): where each base crop begins in the region, in raster order."""
        steps = [torch.arange(count) * side for side, count in zip(self.sides, self.counts, strict=True)]
        return torch.cartesian_prod(*steps).reshape(-1, len(steps))

    def random(self, keys: Tensor, count: int) -> Tensor:
        """int64 (batch, count, axes): where random crops begin in the region, uniform from 0 to below region - side.

        So the centres of 64-voxel crops in a region of 192 are in [32, 160), as in the authors' code.
        """
        room = torch.tensor(self.region, device=keys.device) - torch.tensor(self.sides, device=keys.device)
        return (uniform(keys, "crops", count, len(self.sides)) * room).floor().long()

    def labels(self, begins: Tensor) -> Tensor:
        """float32 (..., bases): each base crop's share of the crops that begin at (..., axes); at most 2 ** axes are not 0, their sum is 1."""
        sides = torch.tensor(self.sides, device=begins.device)
        apart = (begins[..., None, :] - self.bases().to(begins.device)).abs()
        return ((sides - apart).clamp(min=0) / sides).prod(-1)

    def __call__(self, pixels: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(batch, bases + count, channels, *sides): base crops of each example, then random ones; and the `labels` of the latter.

        pixels (batch, channels, *size). The region lies anywhere in a larger input, at random; a smaller one is padded at the
        ends of its axes with its own smallest value of each channel (the air of a scan).
        """
        pixels = padded(pixels, self.region)
        room = torch.tensor(
            [extent - side for extent, side in zip(pixels.shape[2:], self.region, strict=True)], device=keys.device
        )
        origin = (uniform(keys, "region", len(self.sides)) * (room + 1)).floor().long()
        drawn = self.random(keys, count)
        begins = torch.cat([self.bases().to(keys.device).expand(len(keys), -1, -1), drawn], 1) + origin[:, None]
        return cut(pixels, begins, self.sides), self.labels(drawn)


def cut(pixels: Tensor, begins: Tensor, sides: Sequence[int]) -> Tensor:
    """(batch, n, channels, *sides): crops of pixels (batch, channels, *size) that begin at integers (batch, n, axes)."""
    batch, count, axes = begins.shape
    at: list[Any] = [torch.arange(batch, device=pixels.device).reshape(-1, *[1] * (axes + 1))]
    for axis, side in enumerate(sides):
        wide = [side if other == axis else 1 for other in range(axes)]
        along = begins[:, :, axis, None] + torch.arange(side, device=pixels.device)
        at.append(along.reshape(batch, count, *wide))
    first, *rest = at
    return pixels[(first, slice(None), *rest)].movedim(-1, 2)


def padded(pixels: Tensor, least: Sequence[int]) -> Tensor:
    """Inputs at least as large as `least` along each axis: the missing is put at the end, each example's and channel's minimum."""
    missing = [max(0, wanted - extent) for extent, wanted in zip(pixels.shape[2:], least, strict=True)]
    if not any(missing):
        return pixels
    low = pixels.flatten(2).amin(2).reshape(*pixels.shape[:2], *[1] * len(missing))
    ends = [number for count in reversed(missing) for number in (0, count)]
    return torch.nn.functional.pad(pixels - low, ends) + low


def crop_keys(keys: Tensor, count: int) -> Tensor:
    """int64 (batch, count): a key of its own for every crop of every example."""
    return torch.stack([split(keys, f"crop-{number}") for number in range(count)], 1)


@method("views", "crop_pairs", systems=[9])
class CropPairs:
    """Called as `Views` are. Two views of each of VoCo's crops, (batch * crops, channels, *crop) each: what SimCLR makes of the same.

    crop, grid, random_crops: see objective 'voco'. views: one view, drawn twice for every crop.
    """

    def __init__(
        self,
        *,
        crop: PositiveInt | list[PositiveInt] = 64,
        grid: PositiveInt | list[PositiveInt] = 3,
        random_crops: PositiveInt = 2,
        views: Annotated[Configured, Kind("views")] = use("views", "volumes"),
    ) -> None:
        self.crop, self.grid, self.random_crops, self.views = crop, grid, random_crops, views.build()

    def __call__(self, images: Tensor, keys: Tensor) -> list[Tensor]:
        crops, _ = CropGrid.of(self.crop, self.grid, images.dim() - 2)(images, keys, self.random_crops)
        each = crop_keys(keys, crops.shape[1]).flatten()
        return [view for name in ("view-0", "view-1") for view in self.views(crops.flatten(0, 1), split(each, name))]
