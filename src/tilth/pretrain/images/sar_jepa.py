"""SAR-JEPA: within small windows of a radar picture, hidden patches' gradients are predicted, in a form that speckle does not disturb.

Notable: what is predicted is a fixed operator's features of the whole picture, so there is no second network and nothing can collapse;
the encoder never knows where a window lies, only how its patches lie to each other.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import MLP, Block, initialise
from tilth.backbones.patches import PatchEncoder
from tilth.backbones.positions import coordinates
from tilth.backbones.relative import RelativeAttention, buckets
from tilth.batches.images.pictures import natural
from tilth.batches.patches.gradients import ratio_gradients, sobel_magnitude
from tilth.batches.patches.masks import Mask, pick, random
from tilth.batches.patches.patchify import grid_of, normalised, patchify
from tilth.batches.patches.windows import windows
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.heads import one
from tilth.registry import Fraction, PositiveInt
from tilth.traits import Traits


class RelativePredictor(nn.Module):
    """Predictions for all tokens of a sequence through blocks that know how they lie to each other; source: the encoder's width."""

    def __init__(self, source: int, out: int, axes: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(source, width)
        self.blocks = nn.ModuleList(
            Block(width, RelativeAttention(width, heads, axes), MLP(width, 4 * width)) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out)
        self.apply(initialise)

    def forward(self, tokens: Tensor, given: Tensor) -> Tensor:
        """tokens (batch, n, source), given: their `buckets` -> (batch, n, out)."""
        tokens = self.project(tokens)
        for block in self.blocks:
            tokens = block(tokens, given)
        return self.head(self.norm(tokens))  # type: ignore[no-any-return]


@method("pretrain", "sar_jepa", systems=[13])
class SARJEPA(Objective):
    """L = mean over the hidden patches of all windows of the mean squared error to their targets   (arXiv 2311.15153)

    windows, side: how many, and patches along each of their axes; every window is a sequence of its own, in which floor(mask_ratio *
    patches) are replaced by a learned token before the encoder. target: 'ratio_gradient' of the picture at each of `radii` (in
    pixels; `offset` is added to values in their natural scale, which must not be negative), 'sobel' magnitudes of three taps, or
    'pixels', each patch to mean 0 and variance 1; the last two of standardised values, for comparison. predictor_width,
    predictor_depth, predictor_heads: of the predictor, which is dropped afterwards. views: augmentation, one view.

    The encoder needs `position: relative`; a class token goes along to the predictor. Deviates from the authors' code in that
    every picture has windows of its own (there, one set for the batch), and in that contrast is not changed at random.
    batch: pixel_values (batch, channels, *size), keys (batch,). Raises TilthError for an encoder with other positions.
    """

    traits = Traits(
        family="masked reconstruction",
        target="gradients at several scales, robust to speckle",
        guard="fixed target",
        masking="random within local windows",
    )
    model: PatchEncoder
    undecayed = ("token",)

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        windows: PositiveInt = 4,
        side: PositiveInt = 7,
        mask_ratio: Fraction = 0.8,
        target: Literal["ratio_gradient", "sobel", "pixels"] = "ratio_gradient",
        radii: tuple[PositiveInt, ...] = (5, 9, 13, 17),
        offset: Fraction = 1e-2,
        predictor_width: PositiveInt = 512,
        predictor_depth: PositiveInt = 8,
        predictor_heads: PositiveInt = 16,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        if model.config.position != "relative":
            raise TilthError(
                "the windows of SAR-JEPA must not know where they lie",
                where="backbone.patches.position",
                hint="Set 'position: relative'.",
            )
        self.windows, self.side, self.mask_ratio, self.views = windows, side, mask_ratio, views.build()
        self.target, self.radii, self.offset = target, radii, offset
        [given] = model.config.inputs
        maps, axes = len(radii) if target == "ratio_gradient" else 1, len(given["size"])
        out = given["channels"] * maps * prod(given["patch"])
        self.token = nn.Parameter(torch.empty(model.config.hidden_size))
        nn.init.normal_(self.token, std=0.02)
        self.predictor = RelativePredictor(
            model.config.hidden_size, out, axes, width=predictor_width, depth=predictor_depth, heads=predictor_heads
        )

    def forward(self, batch: Batch) -> Loss:
        """Mean over the hidden patches of all windows of all pictures."""
        keys = batch["keys"]
        pixels = one(self.views(natural(batch.pixel_values), keys), "sar_jepa")
        places, mask = self.drawn(keys, grid_of(pixels.shape[2:], self.model.embedding(pixels).patch))
        wanted = pick(self.targets(pixels), places.flatten(1)).unflatten(1, places.shape[1:]).flatten(0, 1)
        predicted = pick(self.predicted(pixels, places, mask), mask.hidden).float()
        return Loss((predicted - pick(wanted, mask.hidden)).square().mean(), count=len(pixels))

    def drawn(self, keys: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Mask]:
        """Numbers of each window's patches (batch, windows, patches), and what is hidden of each (batch * windows, n)."""
        places = windows(keys, grid, self.side, self.windows)
        patches = places.shape[2]
        masks = [random(keys, patches, int(self.mask_ratio * patches), f"mask/{number}") for number in range(self.windows)]
        kept, hidden = (torch.stack([getattr(mask, part) for mask in masks], 1).flatten(0, 1) for part in ("kept", "hidden"))
        return places, Mask(kept, hidden)

    def predicted(self, pixels: Tensor, places: Tensor, mask: Mask) -> Tensor:
        """Of every patch of every window: (batch * windows, patches, out)."""
        embedding, shape = self.model.embedding(pixels), places.shape[1:]
        hidden = mask.where().unflatten(0, places.shape[:2]).flatten(1)
        tokens = embedding(embedding.standardised(pixels), places.flatten(1), hidden, self.token)
        at = coordinates([self.side] * (pixels.ndim - 2)).to(pixels.device)[None]
        features = self.model.encode(tokens.unflatten(1, shape).flatten(0, 1), places=at)
        tokens, summary = features.tokens, features.summary
        if summary is not None:
            tokens = torch.cat([summary[:, None], tokens], 1)
        predicted: Tensor = self.predictor(tokens, buckets(at, summary is not None))
        return predicted if summary is None else predicted[:, 1:]

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> Tensor:
        """Of every patch of inputs in natural scale: (batch, tokens, maps * channels * prod(patch)), radius by radius."""
        embedding = self.model.embedding(pixels)
        if self.target == "ratio_gradient":
            return patchify(ratio_gradients(pixels, self.radii, self.offset), embedding.patch)
        values = embedding.standardised(pixels)
        if self.target == "pixels":
            return normalised(patchify(values, embedding.patch))
        edges = sobel_magnitude(values.flatten(0, 1)[:, None], taps=3).unflatten(0, values.shape[:2])[:, :, 0]
        return patchify(edges, embedding.patch)
