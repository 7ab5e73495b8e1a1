"""Masked autoencoding: hide most of the patches, encode the rest, rebuild the hidden ones."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from tilth.backbones.patches import PatchEncoder
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import Mask, pick, random
from tilth.batches.patches.patchify import grid_of, normalised, patchify
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.pretrain.images.decoder import MaskedDecoder
from tilth.registry import Fraction, PositiveInt


@method("pretrain", "mae", systems=[6, 88])
class MAE(Objective):
    """L = mean over hidden patches of the mean squared error to their pixels   (arXiv 2111.06377)

    mask_ratio: hidden share; tokens - floor(ratio * tokens) patches are seen. normalise: each target patch to mean 0 and variance
    1. decoder_width, decoder_depth, decoder_heads: of the decoder, which is dropped afterwards. views: augmentation.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

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

    def mask(self, keys: Tensor, tokens: int) -> Mask:
        return random(keys, tokens, int(self.mask_ratio * tokens))

    def forward(self, batch: Batch) -> Loss:
        [pixels] = self.views(natural(batch.pixel_values), batch["keys"])
        grid = grid_of(pixels.shape[2:], self.patch)
        targets = patchify(self.model.embedding(pixels).standardised(pixels), self.patch)
        mask = self.mask(batch["keys"], targets.shape[1])
        seen = self.model(pixels, kept=mask.kept).tokens
        positions = sincos(coordinates(grid).to(seen), self.decoder.width)[None]
        predicted = self.decoder(seen, mask, positions)
        hidden = pick(targets, mask.hidden)
        loss = (predicted.float() - (normalised(hidden) if self.normalise else hidden)).square().mean()
        return Loss(loss, count=len(pixels))
