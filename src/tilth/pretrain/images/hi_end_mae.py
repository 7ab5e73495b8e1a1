"""Hi-End-MAE: hidden patches are rebuilt by asking shallower and shallower layers of the encoder for what they saw.

Notable: the decoder's cross-attention reads outputs of encoder blocks as they leave the block, so the loss reaches the early layers
directly and their features become useful by themselves.
"""

from __future__ import annotations

from math import prod
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.blocks import MLP, Attention, CrossAttention, attention_block, initialise
from tilth.backbones.patches import PatchEncoder
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import Mask, pick, random
from tilth.batches.patches.patchify import grid_of, patchify
from tilth.contracts import Batch, Configured, Features, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.heads import one
from tilth.registry import Fraction, NonNegativeInt, PositiveInt
from tilth.traits import Traits


@method("pretrain", "hi_end_mae", systems=[12])
class HiEndMAE(Objective):
    """L = mean over hidden patches of the mean squared error to their pixels, normalised per patch   (arXiv 2502.08347, section 3)

    taps: blocks of the encoder, from 1, whose outputs the decoder queries, the deepest first. The paper says layers 3, 6 and 9 of
    12; its code counts from 0 and so reads the outputs of blocks 4, 7 and 10, which is the default here. mask_ratio: hidden
    share; tokens - floor(ratio * tokens) patches are seen. decoder_width (a multiple of 6 for volumes, of 4 for pictures),
    decoder_heads; decoder_depth: blocks of self-attention before those that query the encoder, of which there is one per tap.
    views: augmentation, by default the paper's for isotropic volumes.

    Target patches have mean 0 and variance 1 with the biased variance, (x - mean) / sqrt(var + 1e-6); constant ones are 0.
    batch: pixel_values (batch, channels, *size), pictures or volumes, keys (batch,). Raises TilthError for a tap that is no block.
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
        taps: tuple[PositiveInt, ...] = (4, 7, 10),
        mask_ratio: Fraction = 0.75,
        decoder_width: PositiveInt = 528,
        decoder_depth: NonNegativeInt = 2,
        decoder_heads: PositiveInt = 16,
        views: Annotated[Configured, Kind("views")] = use(
            "views", "volumes", flip=0.5, rot90=0.3, scale=0.1, shift=0.1, intensity=0.1
        ),
    ) -> None:
        super().__init__(model)
        depth = model.config.num_hidden_layers
        if not taps or len(set(taps)) < len(taps) or max(taps) > depth:
            hint = f"Different numbers from 1 to {depth}; the paper's lie at a third, a half and four fifths of the depth."
            raise TilthError(f"an encoder of {depth} blocks has no taps {list(taps)}", where="hi_end_mae.taps", hint=hint)
        self.taps, self.mask_ratio, self.views = sorted(taps), mask_ratio, views.build()
        [given] = model.config.inputs
        self.patch = tuple(given["patch"])
        self.decoder = EncoderDrivenDecoder(
            model.config.hidden_size, given["channels"] * prod(self.patch), len(taps),
            width=decoder_width, depth=decoder_depth, heads=decoder_heads,
        )  # fmt: skip

    def mask(self, keys: Tensor, tokens: int) -> Mask:
        return random(keys, tokens, int(self.mask_ratio * tokens))

    def forward(self, batch: Batch) -> Loss:
        """Mean over the hidden patches of all pictures."""
        keys = batch["keys"]
        pixels = one(self.views(natural(batch.pixel_values), keys), "hi_end_mae")
        grid = grid_of(pixels.shape[2:], self.patch)
        mask = self.mask(keys, prod(grid))
        features = self.model(pixels, kept=mask.kept, layers=self.taps)
        predicted = self.decoder(features, mask, sincos(coordinates(grid).to(pixels), self.decoder.width)[None])
        targets = pick(patchify(self.model.embedding(pixels).standardised(pixels), self.patch), mask.hidden)
        loss = (predicted.float() - F.layer_norm(targets, targets.shape[-1:], eps=1e-6)).square().mean()
        return Loss(loss, count=len(pixels))


class EncoderDrivenDecoder(nn.Module):
    """Predictions for hidden patches from the encoder's last tokens and from the outputs of `taps` of its blocks.

    source: the encoder's width; out: numbers predicted for a patch; depth: plain blocks before the queries. Outputs of blocks
    are projected, neither normalised nor given positions; a class token goes along without position.
    """

    def __init__(self, source: int, out: int, taps: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(source, width)
        self.tap_projections = nn.ModuleList(nn.Linear(source, width) for _ in range(taps))
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(attention_block(width, heads) for _ in range(depth))
        self.driven = nn.ModuleList(EncoderDrivenBlock(width, heads) for _ in range(taps))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out)
        self.apply(initialise)
        nn.init.normal_(self.token, std=0.02)

    def forward(self, features: Features, mask: Mask, positions: Tensor) -> Tensor:
        """(batch, hidden, out). features.layers: the taps, the shallowest first; positions (1, tokens, width)."""
        tokens = [self.project(features.tokens) + pick(positions, mask.kept), self.token + pick(positions, mask.hidden)]
        if features.summary is not None:
            tokens.insert(0, self.project(features.summary)[:, None])
        x = torch.cat(tokens, 1)
        for block in self.blocks:
            x = block(x)
        taps = zip(self.tap_projections, features.layers, strict=True)
        for block, (project, tap) in zip(self.driven, reversed(list(taps)), strict=True):
            x = block(x, project(tap))
        return self.head(self.norm(x[:, -mask.hidden.shape[1] :]))  # type: ignore[no-any-return]


class EncoderDrivenBlock(nn.Module):
    """x += attention(norm x); x += cross-attention(norm x, to the tap as it is); x += mlp(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.cross_norm, self.cross = nn.LayerNorm(width, eps=1e-6), CrossAttention(width, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width, 4 * width)

    def forward(self, x: Tensor, tap: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        x = x + self.cross(self.cross_norm(x), tap)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
