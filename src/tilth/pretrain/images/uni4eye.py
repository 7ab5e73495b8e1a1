"""Uni4Eye: one encoder of pictures and volumes rebuilds what is hidden twice, as it looks and as its edges run."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import initialise
from tilth.backbones.patches import PatchEncoder
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.images.augment import grey
from tilth.batches.images.pictures import natural
from tilth.batches.patches.entropy import by_entropy, patch_entropy
from tilth.batches.patches.gradients import sobel_magnitude
from tilth.batches.patches.masks import Mask, pick, random
from tilth.batches.patches.patchify import grid_of, normalised, patchify
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.decoder import MaskedDecoder, rebuilt
from tilth.pretrain.images.heads import one
from tilth.registry import Fraction, NonNegative, PositiveInt
from tilth.traits import Traits


class Branch(nn.Module):
    """A masked decoder with an output layer for each kind of input. outs: '2d' or '3d' -> numbers predicted for a patch."""

    def __init__(self, source: int, outs: dict[str, int], *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.decoder = MaskedDecoder(source, width, width=width, depth=depth, heads=heads)
        self.decoder.head = nn.Identity()  # type: ignore[assignment]
        self.heads = nn.ModuleDict({kind: nn.Linear(width, out) for kind, out in outs.items()})
        self.heads.apply(initialise)

    def forward(self, kind: str, seen: Tensor, mask: Mask, grid: Sequence[int]) -> Tensor:
        """Tokens seen (batch, n, source) -> predictions (batch, hidden, out)."""
        positions = sincos(coordinates(grid).to(seen), self.decoder.width)[None]
        return self.heads[kind](self.decoder(seen, mask, positions))  # type: ignore[no-any-return]


@method("pretrain", "uni4eye", systems=[82])
class Uni4Eye(Objective):
    """L = mean over hidden patches of mean (I^ - I)^2 + gradient_weight * mean (G^ - G)^2   (arXiv 2203.04614)

    I: a patch's standardised pixels, each patch to mean 0 and variance 1 with `normalise`; G: its Sobel magnitudes (of five taps, per
    pixel, of the grey standardised input), as they are. Both branches see the same mask; without gradient_weight there is but one.
    mask_ratio: hidden share; masking: 'random', or 'entropy', by which patches that show more are hidden more often (`by_entropy`).
    decoder_width (a multiple of 4 for pictures, of 6 for volumes), decoder_depth, decoder_heads: of each branch, dropped afterwards.
    views, volume_views: augmentation of pictures and of volumes, one view.

    Deviates from the paper, where pictures and volumes alternate by epoch: a batch of both is 0.5 L of its pictures + 0.5 L of
    its volumes (`batches.mixed`). A class token does not go to the decoders. The dynamic head of the successor is not here.
    batch: pixel_values (batch, channels, *size), keys (batch,), of pictures or of volumes; or such batches as `pictures` and `volumes`.
    """

    traits = Traits(
        family="masked reconstruction",
        target="pixels and their gradients",
        guard="fixed target",
        masking="random or by entropy, hidden patches not encoded",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        mask_ratio: Fraction = 0.75,
        masking: Literal["random", "entropy"] = "random",
        normalise: bool = False,
        gradient_weight: NonNegative = 1.0,
        decoder_width: PositiveInt = 480,
        decoder_depth: PositiveInt = 8,
        decoder_heads: PositiveInt = 16,
        views: Annotated[Configured, Kind("views")] = use("views", "mae", greyscale=0.2),
        volume_views: Annotated[Configured, Kind("views")] = use("views", "volumes"),
    ) -> None:
        super().__init__(model)
        if any(len(given.get("groups") or ()) > 1 for given in model.config.inputs):
            raise TilthError("Uni4Eye rebuilds channels embedded together", where="backbone.groups")
        self.mask_ratio, self.masking, self.normalise, self.gradient_weight = mask_ratio, masking, normalise, gradient_weight
        self.views = {"2d": views.build(), "3d": volume_views.build()}
        sizes = {f"{len(given['size'])}d": (given["channels"], prod(given["patch"])) for given in model.config.inputs}
        source, shape = model.config.hidden_size, {"width": decoder_width, "depth": decoder_depth, "heads": decoder_heads}
        self.image = Branch(source, {kind: channels * side for kind, (channels, side) in sizes.items()}, **shape)
        if gradient_weight:
            self.gradient = Branch(source, {kind: side for kind, (_, side) in sizes.items()}, **shape)

    def forward(self, batch: Batch) -> Loss:
        """Pictures and volumes of a batch weigh alike, whatever their numbers."""
        parts = [batch[kind] for kind in ("pictures", "volumes") if kind in batch] or [batch]
        losses = [self.losses(part) for part in parts]
        total = torch.stack([image + self.gradient_weight * gradient for image, gradient in losses]).mean()
        shown: dict[str, Tensor] = {}
        for part, (image, gradient) in zip(parts, losses, strict=True):
            kind = self._kind(part.pixel_values)
            shown |= {f"image_{kind}": image} | ({f"gradient_{kind}": gradient} if self.gradient_weight else {})
        return Loss(total, count=len(parts[-1].pixel_values), **shown)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the image and of the gradient branch (0 where there is none), for inputs of one kind."""
        pixels, targets, mask, seen, grid = self._seen(batch)
        hidden, kind = pick(targets, mask.hidden), self._kind(pixels)
        wanted = normalised(hidden) if self.normalise else hidden
        image = (self.image(kind, seen, mask, grid).float() - wanted).square().mean()
        if not self.gradient_weight:
            return image, torch.zeros_like(image)
        predicted = self.gradient(kind, seen, mask, grid).float()
        return image, (predicted - pick(self.gradients(pixels), mask.hidden)).square().mean()

    def gradients(self, pixels: Tensor) -> Tensor:
        """Sobel magnitudes of inputs in natural scale, patch by patch: (batch, tokens, prod(patch))."""
        embedding = self.model.embedding(pixels)
        return patchify(sobel_magnitude(grey(embedding.standardised(pixels))), embedding.patch)

    def mask(self, keys: Tensor, pixels: Tensor) -> Mask:
        """What is hidden of inputs (batch, channels, *size): the same share of each."""
        patch = self.model.embedding(pixels).patch
        tokens = prod(grid_of(pixels.shape[2:], patch))
        hidden = int(self.mask_ratio * tokens)
        if self.masking == "random":
            return random(keys, tokens, hidden)
        return by_entropy(keys, patch_entropy(patchify(grey(pixels), patch)), hidden)

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Mask, Tensor, tuple[int, ...]]:
        """The view, its standardised patches, what is hidden of them, the encoder's tokens of the others, and their grid."""
        pixels = natural(batch.pixel_values)
        pixels = one(self.views[self._kind(pixels)](pixels, batch["keys"]), "uni4eye")
        embedding = self.model.embedding(pixels)
        targets = patchify(embedding.standardised(pixels), embedding.patch)
        mask = self.mask(batch["keys"], pixels)
        return pixels, targets, mask, self.model(pixels, kept=mask.kept).tokens, grid_of(pixels.shape[2:], embedding.patch)

    @staticmethod
    def _kind(pixels: Tensor) -> str:
        return f"{pixels.ndim - 2}d"

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Sequence[Sequence[Tensor]]:
        """Each input (of both kinds the pictures), what is seen of it, and the same with the hidden patches as predicted."""
        pixels, targets, mask, seen, grid = self._seen(batch.get("pictures") or batch)
        predicted = self.image(self._kind(pixels), seen, mask, grid).float()
        if self.normalise:
            hidden = pick(targets, mask.hidden)
            predicted = predicted * (hidden.var(-1, keepdim=True) + 1e-6).sqrt() + hidden.mean(-1, keepdim=True)
        return rebuilt(self.model, targets, mask, predicted)
