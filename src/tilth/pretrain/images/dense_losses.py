"""Losses of classes of every pixel that leave out ignored pixels: each as (mean, how many units it is the mean of).

Notable: what must be sorted or divided per picture is the mean over pictures that have a pixel, so that half batches add up to whole
ones; where nothing counts the loss is 0 with a gradient of 0, never NaN; no step waits for the device.

logits (batch, classes, *size); target int64 (batch, *size), -100 where a pixel counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tilth.batches.images.segmentation import IGNORED

Weights = Tensor | None  # of classes


def cross_entropy(logits: Tensor, target: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """-sum w[class] log p(class) / sum w[class] over pixels; units: that sum."""
    return _mean(_each(logits, target, weights), _weight_of(target, weights))


def focal(logits: Tensor, target: Tensor, weights: Weights, gamma: float = 2.0) -> tuple[Tensor, Tensor]:
    """-sum w (1 - p)^gamma log p / sum w, p of the pixel's class (arXiv 1708.02002, eq. 5); units: sum of weights."""
    plain = _each(logits, target, None)
    weight = _weight_of(target, weights)
    return _mean((-torch.expm1(-plain)) ** gamma * plain * weight, weight)


def dice(logits: Tensor, target: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Mean over pictures of 1 - the mean, over classes that the picture has, of 2 sum(p y) / (sum p + sum y); units: pictures.

    weights: of classes in that mean.
    """
    shares, truth, valid = _flat(logits, target)
    overlap = 2 * (shares * truth).sum(2) / (shares.sum(2) + truth.sum(2)).clamp(min=1e-6)
    return _over_pictures(1 - overlap, truth, valid, weights)


def lovasz(logits: Tensor, target: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Lovász-softmax (arXiv 1705.08790, eq. 11) of every picture, over the classes that it has; units: pictures.

    weights: of classes in that mean.
    """
    shares, truth, valid = _flat(logits, target)
    errors = (truth - shares).abs()
    order = errors.masked_fill(~valid[:, None], -1.0).argsort(dim=2, descending=True, stable=True)
    found, counted = truth.gather(2, order), valid[:, None].expand_as(truth).gather(2, order).to(truth)
    present = truth.sum(2, keepdim=True)
    jaccard = 1 - (present - found.cumsum(2)) / (present + (counted - found).cumsum(2)).clamp(min=1)
    steps = torch.cat([jaccard[:, :, :1], jaccard.diff(dim=2)], 2)
    return _over_pictures((errors.gather(2, order) * counted * steps).sum(2), truth, valid, weights)


def cross_entropy_dice(logits: Tensor, target: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Mean over pictures of their cross-entropy + Dice loss; units: pictures. Both per picture, for a mean of two has one unit."""
    weight = _weight_of(target, weights).flatten(1)
    each = (_each(logits, target, weights).flatten(1)).sum(1) / weight.sum(1).clamp(min=1e-12)
    usable = (target != IGNORED).flatten(1).any(1).float()
    plain, count = dice(logits, target, weights)
    return _mean(each * usable, usable)[0] + plain, count


LOSSES: dict[str, Callable[[Tensor, Tensor, Weights], tuple[Tensor, Tensor]]] = {
    "cross_entropy": cross_entropy, "dice": dice, "focal": focal, "lovasz": lovasz, "cross_entropy_dice": cross_entropy_dice,
}  # fmt: skip


def _each(logits: Tensor, target: Tensor, weights: Weights) -> Tensor:
    return F.cross_entropy(logits.float(), target, weights, ignore_index=IGNORED, reduction="none")


def _weight_of(target: Tensor, weights: Weights) -> Tensor:
    """Of every pixel: that of its class, 0 where it is ignored."""
    valid = target != IGNORED
    return valid.float() if weights is None else weights[target.clamp(min=0)] * valid


def _mean(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = weight.sum()
    return values.sum() / total.clamp(min=1e-12), total


def _flat(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and truth (batch, classes, pixels), 0 at ignored pixels, and which pixels count (batch, pixels)."""
    target = target.flatten(1)
    valid = target != IGNORED
    truth = F.one_hot(target.clamp(min=0), logits.shape[1]).transpose(1, 2) * valid[:, None]
    shares = logits.float().flatten(2).softmax(1)
    return torch.where(valid[:, None], shares, 0.0), truth.float(), valid


def _over_pictures(each: Tensor, truth: Tensor, valid: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Mean of `each` (batch, classes) over the classes a picture has, then over the pictures that have a pixel."""
    there = (truth.sum(2) > 0).float() * (1.0 if weights is None else weights)
    picture = (each * there).sum(1) / there.sum(1).clamp(min=1e-12)
    usable = valid.any(1).float()
    return _mean(picture * usable, usable)
