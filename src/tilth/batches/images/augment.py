"""Augmentation of whole batches on their device: each operation takes the parameters of every example as tensors.

Notable: nothing here draws (but `noise`, whose parameters are as large as the images) and every operation has a parameter that
leaves an example as it is, so a probability per example is a choice of parameters, without branches or loops over images;
cropping with a flip and blurring are the same thing, one small matrix per example and axis (`resample`), which reduces with
antialiasing exactly as Pillow does, in a third of the time of `grid_sample` at 32 x 32; the hue is turned in HSV without
leaving RGB.

Images are float32 (batch, channels, *spatial); parameters are (batch,) unless said otherwise. Operations on colour and `solarise`
take values in [0, 1] and give such; the others take any finite ones. Saturation, hue and grey need three channels (TilthError).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from tilth.batches import draws
from tilth.errors import TilthError

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of jitter's factors, and what its order permutes


@torch.no_grad()
def resample(images: Tensor, matrices: list[Tensor]) -> Tensor:
    """Every spatial axis replaced by linear combinations of itself: matrices[i] is (batch, new length, length) of axis i."""
    batch = len(images)
    with torch.autocast(images.device.type, enabled=False):  # pictures are data: 16 bits would move their colours
        for axis in range(len(matrices), 0, -1):
            matrix = matrices[axis - 1]
            if axis == len(matrices):
                flat = torch.bmm(images.reshape(batch, -1, images.shape[-1]), matrix.transpose(1, 2))
                images = flat.reshape(*images.shape[:-1], -1)
            else:
                shape = images.shape
                rows = images.reshape(batch, shape[1 : axis + 1].numel(), shape[axis + 1], -1)
                images = torch.matmul(matrix[:, None], rows).reshape(*shape[: axis + 1], -1, *shape[axis + 2 :])
    return images


@torch.no_grad()
def crop_weights(
    start: Tensor, length: Tensor, extent: int, size: int, flipped: Tensor | None = None, bicubic: bool = False
) -> Tensor:
    """The matrix (batch, size, extent) that cuts [start, start + length) out of an axis and brings it to `size`.

    Pillow's resampling (`Image.crop`, then `Image.resize`): a triangle, or Keys' cubic with a = -1/2, that widens where the axis
    shrinks, cut off at the crop's edges and normalised. flipped: bool, the result runs backwards.
    """
    start, length = start[:, None].float(), length[:, None].float()
    steps = torch.arange(size, device=start.device, dtype=torch.float32)
    steps = steps if flipped is None else torch.where(flipped[:, None], size - 1 - steps, steps)
    scale = length / size
    unit = scale.clamp(min=1)
    pixels = torch.arange(extent, device=start.device, dtype=torch.float32)
    inside = (pixels >= start) & (pixels < start + length)
    places = torch.where(inside, (pixels + 0.5) / unit, torch.inf)
    distance = (places[:, None] - ((start + (steps + 0.5) * scale) / unit)[:, :, None]).abs_()
    weights = _cubic(distance) if bicubic else distance.neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, as two truncated powers: u²(u - 1)/2 + v²(1 - 2v) with u = (2 - x)+ and v = (1 - x)+."""
    u, v = (2 - distance).clamp_(min=0), (1 - distance).clamp_(min=0)
    return (u - 1).mul_(u).mul_(u).mul_(0.5).add_((1 - 2 * v).mul_(v).mul_(v))


def crop(images: Tensor, boxes: Tensor, size: tuple[int, int], flipped: Tensor | None = None, bicubic: bool = False) -> Tensor:
    """Boxes cut out of pictures and brought to `size` (height, width), with antialiasing: (batch, channels, *size).

    boxes: (batch, 4), top, left, height, width in whole pixels, within the picture. flipped: bool, left and right change places.
    bicubic results can leave the range of the images a little.
    """
    top, left, height, width = boxes.unbind(1)
    rows = crop_weights(top, height, images.shape[2], size[0], None, bicubic)
    return resample(images, [rows, crop_weights(left, width, images.shape[3], size[1], flipped, bicubic)])


@torch.no_grad()
def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Spatial axes run backwards where `flipped`, bool (batch, spatial axes), says so: (horizontal flips are the last axis)."""
    for axis in range(2, images.dim()):
        images = torch.where(_per_example(flipped[:, axis - 2], images), images.flip(axis), images)
    return images


@torch.no_grad()
def rot90(images: Tensor, turns: Tensor, plane: tuple[int, int] = (-2, -1)) -> Tensor:
    """`turns` quarter turns (integers, any sign) in the plane of two axes of one length, from the first towards the second."""
    first, second = plane
    if images.shape[first] != images.shape[second]:
        raise TilthError(
            f"quarter turns need a square, not {images.shape[first]} x {images.shape[second]}", hint="Crop it first."
        )
    turns = _per_example(turns % 4, images)
    images = torch.where(turns % 2 == 1, images.transpose(first, second), images)
    images = torch.where((turns == 1) | (turns == 2), images.flip(first), images)
    return torch.where(turns >= 2, images.flip(second), images)


@torch.no_grad()
def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turned anticlockwise about the centre, bilinear, zeros from outside; volumes turn in the plane of their last two axes."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees.float())
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # affine_grid measures both axes from -1 to 1, so turns of a rectangle carry the ratio of its sides.
    across, down = torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)
    planes = images.reshape(len(images), -1, height, width)
    grid = affine_grid(torch.stack([across, down], 1), list(planes.shape), align_corners=False)
    return grid_sample(planes, grid, align_corners=False).reshape(images.shape)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images * factor, clipped; factor 1 changes nothing."""
    return _blend_(images.clone(), factor, torch.full_like(factor, BRIGHTNESS))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from (factor > 1) or towards (< 1) the mean of the picture's grey, clipped."""
    return _blend_(images.clone(), factor, torch.full_like(factor, CONTRAST))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from or towards each pixel's grey, clipped; factor 0 gives `greyscale`."""
    _need_colour(images, "saturation")
    return _blend_(images.clone(), factor, torch.full_like(factor, SATURATION))


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """The hue of HSV turned by `turn` (1 is the whole circle); value and saturation stay."""
    _need_colour(images, "hue")
    return _turn_hue_(images.clone(), turn)


@torch.no_grad()
def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue one after another, in an order of each example's own.

    factors: (batch, 4), as for the four operations; (1, 1, 1, 0) changes nothing. order: (batch, 4), order[:, k] is the k-th to
    be applied. As torchvision's ColorJitter, each step clipped to [0, 1]. Without three channels, brightness and contrast
    alone.
    """
    images, coloured = images.clone(), images.shape[1] == 3
    if not coloured:
        factors = torch.cat([factors[:, :SATURATION], torch.ones_like(factors[:, SATURATION:])], 1)
    ranks = order.argsort(1)
    blends, turned = ranks[:, :HUE].argsort(1), ranks[:, HUE:]
    factors_of_blends, before = factors.gather(1, blends), turned > torch.arange(HUE, device=images.device)
    # The hue is dear, blends are cheap: one turn of hue, three blends before and three after it, of which each example has three.
    for active in (before, ~before):
        steps = torch.where(active, factors_of_blends, 1.0)
        for place in range(HUE):
            _blend_(images, steps[:, place], blends[:, place])
        if coloured and active is before:
            _turn_hue_(images, factors[:, HUE])
    return images


@torch.no_grad()
def greyscale(images: Tensor, applied: Tensor) -> Tensor:
    """All three channels replaced by their luma (ITU-R 601) where `applied` (bool)."""
    _need_colour(images, "greyscale")
    return torch.lerp(images, grey(images).expand_as(images), _per_example(applied.float(), images))


@torch.no_grad()
def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur along every spatial axis, the picture mirrored at its edges; sigma in pixels, 0 changes nothing.

    radius: the kernel has 2 * radius + 1 taps and is normalised; below every length of the picture.
    """
    if radius >= min(images.shape[2:]):
        raise TilthError(
            f"a blur of radius {radius} does not fit a picture of {tuple(images.shape[2:])}", hint="Use a smaller radius."
        )
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    taps = torch.exp(-0.5 * (offsets / sigma[:, None].clamp(min=1e-6)) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    return resample(images, [_banded(taps, length) for length in images.shape[2:]])


def _banded(taps: Tensor, length: int) -> Tensor:
    """(batch, length, length): the convolution of an axis with each example's taps, reflected without repeating the edge."""
    radius = taps.shape[1] // 2
    rows = torch.arange(length, device=taps.device)[:, None]
    columns = (rows + torch.arange(-radius, radius + 1, device=taps.device)).abs()
    columns = length - 1 - (length - 1 - columns).abs()
    matrix = taps.new_zeros(len(taps), length, length)
    return matrix.scatter_add_(2, columns.expand(len(taps), -1, -1), taps[:, None].expand(-1, length, -1))


@torch.no_grad()
def solarise(images: Tensor, threshold: Tensor) -> Tensor:
    """1 - x for values x >= threshold; a threshold above 1 changes nothing."""
    # A mask of floats: `where` by a mask that changes from pixel to pixel is thirty times slower on a CPU.
    turned = torch.ge(images, _per_example(threshold, images), out=torch.empty_like(images))
    return torch.lerp(images, 1 - images, turned)


@torch.no_grad()
def intensity(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """images * scale + shift, not clipped; 1 and 0 change nothing."""
    return torch.addcmul(_per_example(shift, images), images, _per_example(scale, images))


@torch.no_grad()
def noise(images: Tensor, keys: Tensor, std: Tensor) -> Tensor:
    """Gaussian noise added, not clipped; std 0 changes nothing."""
    return torch.addcmul(images, draws.normal(keys, "noise", *images.shape[1:]), _per_example(std, images))


@torch.no_grad()
def cutout(images: Tensor, centre: Tensor, size: Tensor, fill: float = 0.0) -> Tensor:
    """A square (a cube of volumes) filled, of which a part may lie outside (arXiv 1708.04552); size 0 changes nothing.

    centre: (batch, spatial axes), pixel at the middle. size: side in pixels, integers; pixels from centre - size // 2 on.
    """
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, length in enumerate(images.shape[2:]):
        pixels = torch.arange(length, device=images.device)
        begin = (centre[:, axis] - size // 2)[:, None]
        hit = (pixels >= begin) & (pixels < begin + size[:, None])
        inside = inside & hit.reshape(-1, 1, *(length if other == axis else 1 for other in range(images.dim() - 2)))
    return images.masked_fill(inside, fill)


def _per_example(values: Tensor, images: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (images.dim() - 1))


def _need_colour(images: Tensor, operation: str) -> None:
    if images.shape[1] != 3:
        raise TilthError(
            f"{operation} needs three channels, not {images.shape[1]}", hint="Leave it out for pictures without colour."
        )


def grey(images: Tensor) -> Tensor:
    """(batch, 1, *spatial): the luma of three channels (ITU-R 601), else the mean of all."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images[:, :1] * 0.299).add_(images[:, 1:2], alpha=0.587).add_(images[:, 2:], alpha=0.114)


@torch.no_grad()
def _blend_(images: Tensor, factor: Tensor, which: Tensor) -> Tensor:
    """factor * images + (1 - factor) * black, mean grey or grey, as `which` says; in place."""
    luma = grey(images)
    mean = luma.flatten(1).mean(1) * (which == CONTRAST)
    target = luma.mul_(_per_example((which == SATURATION).float(), images)).add_(_per_example(mean, images))
    return torch.lerp(target, images, _per_example(factor, images), out=images).clamp_(0, 1)


@torch.no_grad()
def _turn_hue_(images: Tensor, turn: Tensor) -> Tensor:
    """In place. A pixel's hue in sixths of the circle, -3 to 3 with red at 0, is ±(1 + (green + blue - red - lowest) / chroma),
    of the sign of green - blue; a channel is lowest + chroma * clip(2 - |way from its hue|, 0, 1). No case is ever
    distinguished."""
    red, green, blue = images.unbind(1)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    size = (green + blue).sub_(red).sub_(lowest).div_(chroma.clamp(min=1e-12)).add_(1)
    h = size.copysign_(green - blue).add_(_per_example(6 * turn, size))
    h.sub_((h * (1 / 6)).round_(), alpha=6)
    # The way to green at 2 (blue at -2) around the circle is 3 - ||h -+ 2| - 3|.
    torch.addcmul(lowest, chroma, (2 - h.abs()).clamp_(0, 1), out=images[:, 0])
    torch.addcmul(lowest, chroma, (h - 2).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1), out=images[:, 1])
    torch.addcmul(lowest, chroma, h.add_(2).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1), out=images[:, 2])
    return images
