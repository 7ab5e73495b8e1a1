"""Masked autoencoding: hide most of the patches, encode the rest, rebuild the hidden ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from tilth.backbones.patches import PatchEncoder
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import Mask, pick, random
from tilth.batches.patches.patchify import grid_of, normalised, patchify
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.decoder import MaskedDecoder, rebuilt
from tilth.pretrain.images.heads import one
from tilth.registry import Fraction, PositiveInt
from tilth.traits import Traits


@method("pretrain", "mae", systems=[6, 88])
class MAE(Objective):
    """L = mean over hidden patches of the mean squared error to their pixels   (arXiv 2111.06377)

    mask_ratio: hidden share; tokens - floor(ratio * tokens) patches are seen. normalise: each target patch to mean 0 and variance
    1. decoder_width, decoder_depth, decoder_heads: of the decoder, which is dropped afterwards. views: augmentation.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="masked reconstruction",
        target="pixels, normalised per patch",
        guard="fixed target",
        masking="random, hidden patches not encoded",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        mask_ratio: Fraction = 0.75,
        normalise: bool = True,
        decoder_width: PositiveInt = 512,
        decoder_depth: PositiveInt = 8,
        decoder_heads: PositiveInt = 16,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        self.mask_ratio, self.normalise, self.views = mask_ratio, normalise, views.build()
        [given] = model.config.inputs
        self.patch = tuple(given["patch"])
        out = given["channels"]
        for side in self.patch:
            out *= side
        self.decoder = MaskedDecoder(model.config.hidden_size, out, width=decoder_width, depth=decoder_depth, heads=decoder_heads)

    def forward(self, batch: Batch) -> Loss:
        """Mean over the hidden patches of all pictures."""
        targets, mask, predicted, seen = self._predicted(batch)
        hidden = pick(targets, mask.hidden)
        loss = (predicted.float() - (normalised(hidden) if self.normalise else hidden)).square().mean()
        return Loss(loss, count=len(targets), **signs(self, seen.mean(1)))

    def _predicted(self, batch: Batch) -> tuple[Tensor, Mask, Tensor, Tensor]:
        """Standardised patches, which are hidden, what is predicted for those, and the encoder's tokens of the others."""
        pixels = one(self.views(natural(batch.pixel_values), batch["keys"]), "mae")
        grid = grid_of(pixels.shape[2:], self.patch)
        targets = patchify(self.model.embedding(pixels).standardised(pixels), self.patch)
        mask = random(batch["keys"], targets.shape[1], int(self.mask_ratio * targets.shape[1]))
        seen = self.model(pixels, kept=mask.kept).tokens
        positions = sincos(coordinates(grid).to(seen), self.decoder.width)[None]
        return targets, mask, self.decoder(seen, mask, positions), seen

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Sequence[Sequence[Tensor]]:
        """Each picture, what is seen of it, and the same with the hidden patches as predicted."""
        targets, mask, predicted, _ = self._predicted(batch)
        hidden = pick(targets, mask.hidden)
        if self.normalise:
            predicted = predicted * (hidden.var(-1, keepdim=True) + 1e-6).sqrt() + hidden.mean(-1, keepdim=True)
        return rebuilt(self.model, targets, mask, predicted)
