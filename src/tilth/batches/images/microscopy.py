"""What goes wrong with micrographs of serial sections, whole batches at once: one fault for each example, drawn from its key.

Notable: every fault is made of the whole batch and each example takes its own, so nothing branches and nothing loops over examples; faults
are of sections (the last two axes), which lie along the axis before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tilth.batches.draws import normal, uniform
from tilth.batches.images import augment
from tilth.batches.patches.gradients import sobel_magnitude

Fault = Callable[[Tensor, Tensor], Tensor]  # (volumes (batch, channels, sections, height, width), keys) -> the same


@torch.no_grad()
def degraded(values: Tensor, keys: Tensor, share: float) -> Tensor:
    """values (batch, channels, *size) in [0, 1], of which a share has one of `FAULTS` (arXiv 2405.16847's code), all equally likely.

    size: of pictures or of volumes whose first axis counts sections. Flips and turns are no faults: `views` has them.
    """
    volumes = values.reshape(*values.shape[:2], -1, *values.shape[-2:])
    faults = FAULTS if volumes.shape[2] > 1 else FAULTS[:-_OF_STACKS]
    drawn = uniform(keys, "fault", 2)
    kind = torch.where(drawn[:, 0] < share, (drawn[:, 1] * len(faults)).long(), -1)
    made = volumes
    for number, fault in enumerate(faults):
        made = torch.where(_wide(kind == number), fault(volumes, keys), made)
    return made.reshape(values.shape)


def intensity(volumes: Tensor, keys: Tensor) -> Tensor:
    """Values times 0.7 to 1.3, plus -0.15 to 0.15."""
    drawn = 2 * uniform(keys, "fault/intensity", 2) - 1
    return augment.intensity(volumes, 1 + 0.3 * drawn[:, 0], 0.15 * drawn[:, 1])


def noise(volumes: Tensor, keys: Tensor) -> Tensor:
    """Gaussian noise of deviation up to 0.2."""
    return augment.noise(volumes, keys, 0.2 * uniform(keys, "fault/noise", 1)[:, 0])


def blur(volumes: Tensor, keys: Tensor) -> Tensor:
    """Sections out of focus: Gaussian, sigma 0.5 to 2 pixels."""
    radius = min(4, min(volumes.shape[-2:]) - 1)
    return _planes(volumes, lambda planes: augment.blur(planes, 0.5 + 1.5 * uniform(keys, "fault/blur", 1)[:, 0], radius))


def rescale(volumes: Tensor, keys: Tensor) -> Tensor:
    """Sections scanned with half as many pixels a side and enlarged again."""
    size = tuple(volumes.shape[-2:])
    half = tuple(max(1, extent // 2) for extent in size)
    return _planes(volumes, lambda p: F.interpolate(F.interpolate(p, half, mode="area"), size, mode="bilinear"))


def cutout(volumes: Tensor, keys: Tensor) -> Tensor:
    """A cube of a quarter to half of a section's side is black."""
    drawn = uniform(keys, "fault/cutout", 4)
    extents = torch.tensor(volumes.shape[2:], device=keys.device)
    side = ((0.25 + 0.25 * drawn[:, 3]) * min(volumes.shape[-2:])).long()
    return augment.cutout(volumes, (drawn[:, :3] * extents).long(), side)


def sobel(volumes: Tensor, keys: Tensor) -> Tensor:
    """The gradients of sections in place of them, with 1 at most."""
    planes = volumes.reshape(-1, 1, *volumes.shape[-2:])
    return sobel_magnitude(planes).clamp(max=1).reshape(volumes.shape)


def elastic(volumes: Tensor, keys: Tensor) -> Tensor:
    """Sections warped alike by a smooth field: displacements of a 4 x 4 grid, with a deviation of a twentieth of the side."""
    height, width = volumes.shape[-2:]
    field = F.interpolate(0.1 * normal(keys, "fault/elastic", 2, 4, 4), (height, width), mode="bicubic", align_corners=True)
    rows = torch.linspace(-1 + 1 / height, 1 - 1 / height, height, device=volumes.device)
    columns = torch.linspace(-1 + 1 / width, 1 - 1 / width, width, device=volumes.device)
    grid = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], 2) + field.movedim(1, 3)
    return _planes(volumes, lambda p: F.grid_sample(p, grid, mode="bilinear", padding_mode="reflection", align_corners=False))


def misaligned(volumes: Tensor, keys: Tensor) -> Tensor:
    """From one section on all are moved by up to an eighth of the side, edges repeated."""
    drawn = uniform(keys, "fault/misaligned", 3)
    reach = max(1, min(volumes.shape[-2:]) // 8)
    moves = ((2 * drawn[:, 1:] - 1) * (reach + 0.999)).trunc().long()
    moved = volumes
    for axis in (-2, -1):
        length = volumes.shape[axis]
        place = (torch.arange(length, device=keys.device) - moves[:, axis, None]).clamp(0, length - 1)
        shape = [len(keys), 1, 1, 1, 1]
        shape[axis] = length
        moved = moved.gather(axis + 5, place.reshape(shape).expand_as(moved))
    sections = torch.arange(volumes.shape[2], device=keys.device)
    since = 1 + (drawn[:, 0] * (volumes.shape[2] - 1)).long()
    return torch.where((sections >= since[:, None])[:, None, :, None, None], moved, volumes)


def missing(volumes: Tensor, keys: Tensor) -> Tensor:
    """One section is black."""
    return torch.where(_one_section(volumes, keys, "fault/missing"), 0.0, volumes)


def artefact(volumes: Tensor, keys: Tensor) -> Tensor:
    """One section is a negative of low contrast, as of a charged or stained one."""
    negative = 0.5 + 0.3 * (0.5 - volumes)
    return torch.where(_one_section(volumes, keys, "fault/artefact"), negative, volumes)


_OF_STACKS = 3
FAULTS: tuple[Fault, ...] = (
    intensity, noise, blur, rescale, cutout, sobel, elastic, misaligned, missing, artefact,
)  # fmt: skip


def _one_section(volumes: Tensor, keys: Tensor, name: str) -> Tensor:
    """True in one section of each volume."""
    sections = torch.arange(volumes.shape[2], device=keys.device)
    chosen = (uniform(keys, name, 1) * volumes.shape[2]).long()
    return (sections == chosen)[:, None, :, None, None]


def _planes(volumes: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of pictures (batch, channels * sections, height, width), for whatever treats all sections of an example alike."""
    return change(volumes.flatten(1, 2)).reshape(volumes.shape)


def _wide(chosen: Tensor) -> Tensor:
    return chosen[:, None, None, None, None]
