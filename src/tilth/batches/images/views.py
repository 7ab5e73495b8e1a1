"""Views: the randomly cropped and distorted versions of pictures that objectives compare, made for whole batches on their device.

Notable: a view of a picture is a function of the picture and its key (`batches.draws`), whatever its batch and device; the first
view draws from the keys themselves, view i from `split(keys, "view-i")`. Operations and their exact meaning: `augment`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tilth.batches.draws import split, uniform
from tilth.batches.images import augment
from tilth.errors import TilthError
from tilth.registry import Fraction, NonNegative, NonNegativeInt, PositiveInt, method

_TRIES = 10
_BLURRED_FROM = 64
_AT_ONCE = 2**20  # numbers that a CPU works on at a time, so that they stay in its caches


@dataclass(frozen=True)
class Distortion:
    """What is done to colours and sharpness, in this order, each with its probability for a picture. Values stay in [0, 1].

    jitter: brightness, contrast and saturation multiplied by uniform [1 - x, 1 + x], hue turned by uniform [-hue, hue] of the
    circle, in random order. greyscale. blur: Gaussian, its standard deviation uniform [0.1, 2] pixels, its kernel a tenth of
    the picture (off below 64 pixels, as SimCLR for CIFAR-10). solarise: values from 0.5 on inverted. Without three channels,
    saturation, hue and greyscale are left out.
    """

    __pydantic_config__ = {"extra": "forbid"}

    jitter: Fraction = 0.8
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.4
    hue: NonNegative = 0.1
    greyscale: Fraction = 0.2
    blur: Fraction = 0.5
    solarise: Fraction = 0.0

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        if self.jitter:
            images = augment.jitter(images, *self.jitter_of(keys))
        if self.greyscale and images.shape[1] == 3:
            images = augment.greyscale(images, uniform(keys, "greyscale") < self.greyscale)
        if self.blur and min(images.shape[2:]) >= _BLURRED_FROM:
            applied, sigma = uniform(keys, "blur", 2).unbind(1)
            sigma = torch.where(applied < self.blur, 0.1 + 1.9 * sigma, 0.0)
            images = augment.blur(images, sigma, min(images.shape[2:]) // 20)
        if self.solarise:
            images = augment.solarise(images, torch.where(uniform(keys, "solarise") < self.solarise, 0.5, 2.0))
        return images

    def jitter_of(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Factors and order of `augment.jitter`, (batch, 4) each."""
        drawn = uniform(keys, "jitter", 9)
        widths = (self.brightness, self.contrast, self.saturation, self.hue)
        offsets = torch.stack([width * (2 * drawn[:, i + 1] - 1) for i, width in enumerate(widths)], 1)
        factors = torch.where(drawn[:, :1] < self.jitter, offsets, 0.0)
        factors[:, : augment.HUE].add_(1).clamp_(min=0)
        return factors, drawn[:, 5:].argsort(1)


PLAIN = Distortion(jitter=0, greyscale=0, blur=0)


@dataclass(frozen=True)
class Crop:
    """A random resized crop, flipped left and right with probability `flip`, then distorted: (batch, channels, size, size).

    size: None: that of the pictures, divided by `shrink`. scale: bounds of the crop's share of the area; (1, 1) takes the whole
    picture. bicubic: else bilinear. The aspect ratio is log-uniform in [3/4, 4/3], as torchvision's RandomResizedCrop draws it.
    """

    size: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    bicubic: bool = False
    distortion: Distortion = PLAIN
    shrink: int = 1
    ratio: ClassVar[tuple[float, float]] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise TilthError(
                f"a crop's scale is {list(self.scale)}", hint="Two shares of the area, 0 < smallest <= largest <= 1."
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        count = max(1, _AT_ONCE // images.shape[1:].numel())
        if images.device.type != "cpu" or len(images) <= count:
            return self._made(images, keys)
        return torch.cat([self._made(*part) for part in zip(images.split(count), keys.split(count), strict=True)])

    def _made(self, images: Tensor, keys: Tensor) -> Tensor:
        height, width = images.shape[2:]
        size = (self.size, self.size) if self.size else (max(1, height // self.shrink), max(1, width // self.shrink))
        drawn = uniform(keys, "crop", 2 * _TRIES + 3)
        images = augment.crop(images, self.boxes(drawn[:, 1:], height, width), size, drawn[:, 0] < self.flip, self.bicubic)
        images = images.clamp_(0, 1) if self.bicubic else images  # linear weights stay in range, but for rounding
        return self.distortion(images, keys).clamp_(0, 1)

    def boxes(self, drawn: Tensor, height: int, width: int) -> Tensor:
        """float32 (batch, 4): top, left, height, width, whole numbers; drawn: uniform (batch, 22).

        The first of ten boxes drawn that fits into the picture, else the largest of a permitted ratio, centred.
        """
        if self.scale[0] == 1:
            return torch.stack([torch.full_like(drawn[:, 0], x) for x in (0, 0, height, width)], 1)
        share, shape, place = drawn[:, :_TRIES], drawn[:, _TRIES:-2], drawn[:, -2:]
        (smallest, largest), (low, high) = self.scale, self.ratio
        area = height * width * (smallest + (largest - smallest) * share)
        ratio = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * shape)
        wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
        first, found = fits.int().argmax(1, keepdim=True), fits.any(1)
        columns = []
        for tries, length, most, u in (
            (tall, height, min(height, round(width / low)), place[:, 0]),
            (wide, width, min(width, round(height * high)), place[:, 1]),
        ):
            side = tries.gather(1, first)[:, 0]
            start = torch.where(found, (u * (length - side + 1)).floor(), (length - most) // 2)
            columns.append((start, torch.where(found, side, most)))
        return torch.stack([*(start for start, _ in columns), *(side for _, side in columns)], 1)


class Views:
    """Pictures -> their views. images: float32 (batch, channels, height, width) in [0, 1]; keys: int64 (batch,), on the same
    device.

    Gives one tensor for each of `crops`, (batch, channels, size, size), without gradients. Raises TilthError for what is no
    picture.
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, crops: list[Crop]) -> None:
        self.crops = crops

    def __call__(self, images: Tensor, keys: Tensor) -> list[Tensor]:
        if images.dim() != 4:
            raise TilthError(
                f"the views '{self.name}' are of pictures (batch, channels, height, width), not of shape {tuple(images.shape)}",
                hint="Use the views 'volumes' for scans.",
            )
        return [crop(images, keys if i == 0 else split(keys, f"view-{i}")) for i, crop in enumerate(self.crops)]


@method("views", "none")
class Whole(Views):
    """One view: the whole picture, brought to `size`."""

    def __init__(self, *, size: PositiveInt | None = None) -> None:
        super().__init__([Crop(size, scale=(1, 1), flip=0)])

    def __call__(self, images: Tensor, keys: Tensor) -> list[Tensor]:
        (crop,) = self.crops
        return [images] if crop.size is None or images.shape[2:] == (crop.size, crop.size) else super().__call__(images, keys)


@method("views", "mae")
class MAE(Views):
    """One view: a crop and a flip (arXiv 2111.06377, appendix A.1), bicubic as in its code. greyscale: probability, 0 there."""

    def __init__(
        self,
        *,
        size: PositiveInt | None = None,
        scale: tuple[Fraction, Fraction] = (0.2, 1.0),
        flip: Fraction = 0.5,
        greyscale: Fraction = 0.0,
    ) -> None:
        super().__init__([Crop(size, scale, flip, True, Distortion(jitter=0, greyscale=greyscale, blur=0))])


@method("views", "simclr", systems=[88])
class SimCLR(Views):
    """Two views drawn alike (arXiv 2002.05709, appendix A): crop, flip, jitter of 0.8 `strength` (hue 0.2), greyscale, blur.

    strength: 1 in the paper, 0.5 for CIFAR-10 (its appendix B.9); 0.5 with scale (0.2, 1) is MoCo v2 (arXiv 2003.04297).
    Deviation: contrast is about the mean grey (torchvision), where the paper's code takes each channel's mean.
    """

    def __init__(
        self,
        *,
        size: PositiveInt | None = None,
        scale: tuple[Fraction, Fraction] = (0.08, 1.0),
        strength: NonNegative = 1.0,
        blur: Fraction = 0.5,
    ) -> None:
        s = 0.8 * strength
        distortion = Distortion(brightness=s, contrast=s, saturation=s, hue=s / 4, blur=blur)
        super().__init__([Crop(size, scale, distortion=distortion)] * 2)


_FIRST = Distortion(saturation=0.2, blur=1.0)
_SECOND = Distortion(saturation=0.2, blur=0.1, solarise=0.2)
_LOCAL = Distortion(saturation=0.2, blur=0.5)


@method("views", "byol")
class BYOL(Views):
    """Two views drawn differently (arXiv 2006.07733, appendix B, table 6): the first always blurred, the second solarised at
    times."""

    def __init__(
        self,
        *,
        size: PositiveInt | None = None,
        scale: tuple[Fraction, Fraction] = (0.08, 1.0),
        first: Distortion = _FIRST,
        second: Distortion = _SECOND,
    ) -> None:
        super().__init__([Crop(size, scale, bicubic=True, distortion=distortion) for distortion in (first, second)])


@method("views", "multi_crop")
class MultiCrop(Views):
    """`global_crops` large and then `local_crops` small crops (SwAV, arXiv 2006.09882, section 3.3; the values are DINO's,
    2104.14294).

    local_size: None: half of the global one (96 of 224 in both papers, which few patch sizes divide). The first large crop is
    distorted as `first`, the others as `second`, small ones as `local`. SwAV: scale (0.14, 1), local_scale (0.05, 0.14), and in
    all three brightness, contrast and saturation 0.8, hue 0.2, blur 0.5, no solarising.
    """

    def __init__(
        self,
        *,
        size: PositiveInt | None = None,
        local_size: PositiveInt | None = None,
        global_crops: PositiveInt = 2,
        local_crops: NonNegativeInt = 6,
        scale: tuple[Fraction, Fraction] = (0.4, 1.0),
        local_scale: tuple[Fraction, Fraction] = (0.05, 0.4),
        first: Distortion = _FIRST,
        second: Distortion = _SECOND,
        local: Distortion = _LOCAL,
    ) -> None:
        large = [Crop(size, scale, bicubic=True, distortion=first if i == 0 else second) for i in range(global_crops)]
        if local_size is None and size:
            local_size = max(1, size // 2)
        super().__init__(large + [Crop(local_size, local_scale, bicubic=True, distortion=local, shrink=2)] * local_crops)


@method("views", "volumes", systems=[9, 12])
class Volumes:
    """Called as `Views` are. One view of scans (batch, channels, *spatial): flips, a quarter turn, intensities. The values are
    VoCo's (arXiv 2402.17300).

    flip: probability for each axis. rot90: of one to three quarter turns in the plane of the first two spatial axes, which must
    then be equally long. scale, shift: values are multiplied by uniform [1 - scale, 1 + scale] and uniform [-shift, shift] is
    added, each with probability `intensity`; they are not clipped. Hi-End-MAE (arXiv 2502.08347): 0.5, 0.3, 0.1, 0.1 and 0.1.
    """

    def __init__(
        self,
        *,
        flip: Fraction = 0.2,
        rot90: Fraction = 0.2,
        scale: NonNegative = 0.0,
        shift: NonNegative = 0.1,
        intensity: Fraction = 0.5,
    ) -> None:
        self.flip, self.rot90, self.scale, self.shift, self.intensity = flip, rot90, scale, shift, intensity

    def __call__(self, images: Tensor, keys: Tensor) -> list[Tensor]:
        images = augment.flip(images, uniform(keys, "flip", images.dim() - 2) < self.flip)
        if self.rot90:
            applied, turns = uniform(keys, "rot90", 2).unbind(1)
            images = augment.rot90(images, torch.where(applied < self.rot90, 1 + (3 * turns).long(), 0), (2, 3))
        drawn = uniform(keys, "intensity", 4)
        by = torch.where(drawn[:, :2] < self.intensity, 2 * drawn[:, 2:] - 1, 0.0)
        return [augment.intensity(images, 1 + self.scale * by[:, 0], self.shift * by[:, 1])]
