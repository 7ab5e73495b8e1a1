"""Supervised segmentation: the class of every pixel or voxel, of those that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tilth.batches.images.pictures import natural
from tilth.batches.images.segmentation import IGNORED
from tilth.batches.images.shared_crop import cropped
from tilth.contracts import Batch, Loss, Objective, method
from tilth.errors import TilthError
from tilth.pretrain.images.dense_losses import LOSSES
from tilth.registry import Fraction, Positive

_SHADES = ((0.9, 0.9, 0.85), (0.1, 0.3, 0.7), (0.2, 0.8, 0.9), (0.8, 0.4, 0.1), (0.3, 0.6, 0.2), (0.6, 0.2, 0.6))


@method("pretrain", "segmentation", systems=[6])
class Segmentation(Objective):
    """One of several losses of the classes of pixels, ignored ones left out   (arXiv 2311.12056, BlackBench)

    loss: 'cross_entropy', 'dice', 'focal' (gamma 2), 'lovasz', or 'cross_entropy_dice', their sum: `dense_losses`. weights: of
    classes (Kuro Siwo's: 0.3716, 14.0098, 8.2041). crop: bounds of the share of the area that is cut out of every picture,
    dates and mask alike, and resized to what it was; None: none. flip: probability, left and right. Both of pictures alone.
    train: 'all' weights, or the 'head' alone of a `dense_classifier` (the paper's linear_eval).
    batch: pixel_values (batch, channels, *size); mask (batch, *size): index of the class, -100 ignored; keys (batch,)
    """

    shows = (
        "The class of every pixel",
        "Left to right: the last channel, the classes that its pixels have, and those that are found; black counts for nothing.",
    )
    weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        loss: Literal["cross_entropy", "dice", "focal", "lovasz", "cross_entropy_dice"] = "cross_entropy",
        weights: list[Positive] | None = None,
        crop: tuple[Fraction, Fraction] | None = None,
        flip: Fraction = 0.0,
        train: Literal["all", "head"] = "all",
    ) -> None:
        super().__init__(model)
        classes = getattr(getattr(model, "config", None), "num_labels", None)
        if weights is not None and classes not in (None, len(weights)):
            raise TilthError(f"{len(weights)} weights for {classes} classes", where="segmentation.weights")
        self.loss, self.crop, self.flip = loss, crop, flip
        self.register_buffer("weights", None if weights is None else torch.tensor(weights))
        if train == "head":
            encoder = getattr(model, "encoder", None)
            if not isinstance(encoder, nn.Module):
                raise TilthError(
                    "this network has no encoder to freeze", where="segmentation.train", hint="Use 'dense_classifier'."
                )
            encoder.requires_grad_(False)

    def forward(self, batch: Batch) -> Loss:
        """The chosen loss over pixels that count, and the share of them that is right."""
        pixels, mask = self._views(batch)
        logits = self.model(pixel_values=pixels).logits
        total, count = LOSSES[self.loss](logits, mask, self.weights)
        valid = mask != IGNORED
        right = ((logits.argmax(1) == mask) & valid).sum() / valid.sum().clamp(min=1)
        return Loss(total, count=count.detach(), accuracy=right)

    def _views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pixels, mask = natural(batch.pixel_values), batch.mask
        if not self.training or (self.crop is None and not self.flip):
            return pixels, mask
        return cropped(pixels, mask, batch["keys"], scale=self.crop or (1.0, 1.0), flip=self.flip)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Sequence[Sequence[Tensor]]:
        """Of pictures: the last channel, stretched, the classes they have and those that are found."""
        pixels = natural(batch.pixel_values)
        if pixels.ndim != 4:
            return ()
        found = self.model(pixel_values=pixels).logits.argmax(1)
        last = pixels[:, -1:]
        low, high = last.amin((1, 2, 3), keepdim=True), last.amax((1, 2, 3), keepdim=True)
        grey = ((last - low) / (high - low).clamp(min=1e-12)).expand(-1, 3, -1, -1)
        return [list(row) for row in zip(grey, painted(batch.mask), painted(found), strict=True)]


def painted(classes: Tensor) -> Tensor:
    """(batch, height, width) -> (batch, 3, height, width): a colour for every class, black where ignored."""
    shades = torch.tensor(_SHADES, device=classes.device)
    colours = shades[classes.clamp(min=0) % len(_SHADES)] * (classes != IGNORED)[..., None]
    return colours.movedim(-1, 1)
