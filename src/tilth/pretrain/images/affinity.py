"""Affinities: whether a voxel and its neighbour belong to one object, along each axis; what segments objects that look alike.

Notable: ids are flipped and turned before affinities are made of them, so no target has to be moved from one side of a face to
the other; voxels of a batch are weighed and counted so that half batches add up to whole ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.batches.draws import uniform
from tilth.batches.images import augment
from tilth.batches.images.instances import UNLABELLED
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Loss, Objective, method
from tilth.errors import TilthError
from tilth.registry import Fraction, NonNegativeInt


@method("pretrain", "affinity", systems=[47])
class Affinity(Objective):
    """Weighted binary cross-entropy of the affinities of voxels   (arXiv 2405.16847, fine-tuning)

    L = sum w [-a log s - (1 - a) log(1 - s)] / sum w over all voxels and axes of a batch whose affinity a is known, s the
    sigmoid of the network's logit. With `weighted` w is 1 for the commoner value of a, and for the rarer how often the commoner
    is met for each of it, counted for every example and axis alone (1 where only one value is met); without, w is 1. The
    authors' code counts all axes together, lets the rarer weigh no more than 99 (affinity 0) or 19 (1), and divides by the
    number of voxels.

    axes: along which the network gives affinities, in the order of its outputs, numbered from 0; None: all. Where ids are those
    of sections, (1, 2). flip: probability, of each axis. rot90: of one to three quarter turns in the plane of the last two
    axes, which must then be equally long. Both of pixels and ids alike, in training alone.
    batch: pixel_values (batch, channels, *size); ids (batch, *size): of objects, 0 in none, -1 unlabelled; keys (batch,)
    """

    shows = (
        "One object with its neighbour, or not",
        "Left to right: the middle section, the true affinities (white: one object along all axes, black: none, grey: not known), and "
        "the predicted ones.",
    )

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        axes: tuple[NonNegativeInt, ...] | None = None,
        weighted: bool = True,
        flip: Fraction = 0.5,
        rot90: Fraction = 0.0,
    ) -> None:
        super().__init__(model)
        self.axes, self.weighted, self.flip, self.rot90 = axes, weighted, flip, rot90

    def forward(self, batch: Batch) -> Loss:
        """Raises TilthError when the network does not give one output for each axis, or `axes` does not fit the input."""
        pixels, ids = self._views(batch)
        targets, valid = affinities(ids, chosen(self.axes, ids.dim() - 1))
        logits = fitting(self.model(pixel_values=pixels).logits, targets.shape[1]).float()
        weight = balanced(targets, valid) if self.weighted else valid.float()
        count = weight.sum()
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        right = (logits > 0) == (targets > 0)
        total, accuracy = ((values * weight).sum() / count.clamp(min=1e-12) for values in (each, right))
        return Loss(total, count=count, accuracy=accuracy)

    def _views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pixels, ids = natural(batch.pixel_values), batch.ids[:, None]
        if self.training and self.flip:
            flipped = uniform(batch["keys"], "affinity/flip", pixels.dim() - 2) < self.flip
            pixels, ids = augment.flip(pixels, flipped), augment.flip(ids, flipped)
        if self.training and self.rot90:
            applied, turns = uniform(batch["keys"], "affinity/rot90", 2).unbind(1)
            turns = torch.where(applied < self.rot90, 1 + (3 * turns).long(), 0)
            pixels, ids = augment.rot90(pixels, turns), augment.rot90(ids, turns)
        return pixels, ids[:, 0]

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Sequence[Sequence[Tensor]]:
        """The input, its true and its predicted affinities, means over the axes; of volumes a report shows the middle section."""
        pixels = natural(batch.pixel_values)
        known = shown(*affinities(batch.ids, chosen(self.axes, batch.ids.dim() - 1)))
        found = self.model(pixel_values=pixels).logits.float().sigmoid().mean(1, keepdim=True)
        return [list(row) for row in zip(stretched(pixels), known, found, strict=True)]


def affinities(ids: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Targets, float (batch, axes, *size), and which of them are known, bool.

    A target is 1 where a voxel and the one before it along the axis have the same id > 0, else 0. Not known are those of the
    first voxels of an axis, which have none before them, and those of which either id is -1. ids: whole numbers (batch, *size).
    """
    targets, valid = [], []
    for axis in axes:
        length = ids.shape[axis + 1]
        none = torch.full_like(ids.narrow(axis + 1, 0, 1), UNLABELLED)
        before = torch.cat([none, ids.narrow(axis + 1, 0, length - 1)], axis + 1)
        targets.append((ids == before) & (ids > 0))
        valid.append((ids != UNLABELLED) & (before != UNLABELLED))
    return torch.stack(targets, 1).float(), torch.stack(valid, 1)


def balanced(targets: Tensor, valid: Tensor) -> Tensor:
    """The weight of every affinity, float (batch, axes, *size): see `Affinity`; 0 where it is not known."""
    inside = tuple(range(2, targets.dim()))
    joined = targets > 0
    ones = (joined & valid).sum(inside, keepdim=True)
    zeros = (~joined & valid).sum(inside, keepdim=True)
    of_ones, of_zeros = ((other / own.clamp(min=1)).clamp(min=1) for own, other in ((ones, zeros), (zeros, ones)))
    return torch.where(joined, of_ones, of_zeros) * valid


def chosen(axes: Sequence[int] | None, dims: int) -> tuple[int, ...]:
    """The axes themselves, or all of `dims`; TilthError for none, one twice, or one that the input does not have."""
    if axes is None:
        return tuple(range(dims))
    if not axes or len(set(axes)) < len(axes) or max(axes) >= dims:
        raise TilthError(
            f"inputs of {dims} axes have no affinities along {list(axes)}", where="axes", hint="Count from 0, each once."
        )
    return tuple(axes)


def fitting(logits: Tensor, count: int) -> Tensor:
    """The logits (batch, outputs, *size), if they are those of so many axes; else TilthError."""
    if logits.shape[1] != count:
        raise TilthError(f"the network gives {logits.shape[1]} affinities for {count} axes", where="axes", hint="Set 'axes'.")
    return logits


def shown(targets: Tensor, valid: Tensor) -> Tensor:
    """True affinities as pictures (batch, 1, *size): their mean over the axes, where one that is not known counts half."""
    return targets.where(valid, 0.5).mean(1, keepdim=True)


def stretched(pixels: Tensor) -> Tensor:
    """Grey pictures (batch, 1, *size), each between its own least (0) and greatest value (1)."""
    values = augment.grey(pixels)
    inside = tuple(range(1, values.dim()))
    low, high = values.amin(inside, keepdim=True), values.amax(inside, keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-12)
