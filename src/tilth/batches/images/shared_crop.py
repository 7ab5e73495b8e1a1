"""One random crop and flip for a picture of several dates and its mask.

Notable: pixels are resampled, classes never mixed: the mask takes the nearest pixel's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tilth.batches.draws import uniform
from tilth.batches.images import augment
from tilth.batches.images.segmentation import IGNORED
from tilth.batches.images.views import Crop

_NUMBERS = 23  # what `Crop` draws for a picture: a flip, ten boxes, a place


@torch.no_grad()
def cropped(images: Tensor, mask: Tensor, keys: Tensor, *, scale: tuple[float, float], flip: float) -> tuple[Tensor, Tensor]:
    """Images (batch, channels, height, width) and mask (batch, height, width), cut and flipped alike, of the same size as before.

    scale, flip: as `views.Crop`, whose boxes are drawn here from the same numbers; bicubic, kept within each picture's own range.
    An example whose crop has no pixel but ignored ones stays as it was (arXiv 2311.12056's code).
    """
    height, width = images.shape[2:]
    drawn = uniform(keys, "crop", _NUMBERS)
    boxes, flipped = Crop(scale=scale).boxes(drawn[:, 1:], height, width), drawn[:, 0] < flip
    top, left, tall, wide = boxes.unbind(1)
    rows, columns = _nearest(top, tall, height), _nearest(left, wide, width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    cut = mask.gather(1, rows[:, :, None].expand(-1, -1, width)).gather(2, columns[:, None].expand(-1, height, -1))
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    made = augment.crop(images, boxes, (height, width), flipped, bicubic=True).clamp(low, high)
    usable = (cut != IGNORED).flatten(1).any(1)
    return torch.where(usable[:, None, None, None], made, images), torch.where(usable[:, None, None], cut, mask)


def _nearest(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(batch, size): for each pixel of the result, that of the picture whose area holds its centre."""
    steps = torch.arange(size, device=start.device) + 0.5
    return (start[:, None] + torch.floor(steps * length[:, None] / size)).long()
