"""SatMAE++: masked autoencoding of pictures with groups of bands, which must also be rebuilt at twice and four times the size.

Notable: the encoder learns on the reduced picture and is made an encoder of that size, since that is what it is used at;
predictions of all groups are put back into the order of the bands before they are compared or enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import attention_block, initialise
from tilth.backbones.patches import PatchEmbedding, PatchEncoder
from tilth.backbones.positions import coordinates, interpolated, sincos
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import Mask, pick, random
from tilth.batches.patches.patchify import grid_of, patchify, unpatchify
from tilth.contracts import Batch, Configured, Features, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.heads import one
from tilth.pretrain.images.upsampling import Upsampler, pyramid
from tilth.registry import Fraction, NonNegative, PositiveInt
from tilth.traits import Traits


@method("pretrain", "sat_mae_pp", systems=[29])
class SatMAEPP(Objective):
    """L = reconstruction * L_1 + multi_scale * L_ms   (arXiv 2403.05419, section 3.2; groups of bands: SatMAE, arXiv 2207.08051)

    L_1: mean over hidden tokens of the mean squared error to their pixels, each token's over its group of bands. L_ms: mean
    absolute error over all pixels of the pictures at 2, 4, ... 2^scales times the size, averaged over these.

    Pictures come at 2^scales times the size that is encoded; after the objective is made, the encoder's configuration says that
    smaller size. scales: how often a picture is enlarged. mask_ratio: hidden share of the tokens of all groups together, or with
    spatial_mask of the places, hidden in all groups. multi_scale 0 is SatMAE (there is then no upsampler), with one group MAE
    without normalised targets. decoder_width, decoder_depth, decoder_heads: of the decoder. views: augmentation.

    Deviates from the authors' code, which compares predictions in the order of the groups with targets in the order of the bands.
    Targets are standardised per band also where the paper has them in [0, 1] (Sentinel-2), so that both terms weigh there as they
    do for its RGB pictures. Bands in no group are neither seen nor predicted.

    batch: pixel_values (batch, channels, height, width), keys (batch,). Raises TilthError for a band in two groups, for an
    encoder of something else than pictures, and for sizes that cannot be halved `scales` times into whole patches.
    """

    traits = Traits(
        family="masked reconstruction",
        target="pixels at several scales",
        guard="fixed target",
        masking="random, hidden patches not encoded",
    )
    model: PatchEncoder
    order: Tensor
    bands: Tensor

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        scales: PositiveInt = 2,
        mask_ratio: Fraction = 0.75,
        spatial_mask: bool = False,
        reconstruction: NonNegative = 0.6,
        multi_scale: NonNegative = 0.4,
        decoder_width: PositiveInt = 512,
        decoder_depth: PositiveInt = 8,
        decoder_heads: PositiveInt = 16,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        self.scales, self.mask_ratio, self.spatial_mask = scales, mask_ratio, spatial_mask
        self.reconstruction, self.multi_scale, self.views = reconstruction, multi_scale, views.build()
        embedding = reduce_input(model, 2**scales)
        self.patch, self.groups = embedding.patch, embedding.groups
        listed = torch.tensor([band for group in self.groups for band in group])
        if len(listed.unique()) < len(listed):
            raise TilthError("a band lies in two groups", where="backbone.patches.groups", hint="Give each band to one group.")
        self.register_buffer("bands", listed.sort().values, persistent=False)
        self.register_buffer("order", listed.argsort(), persistent=False)
        outs = [len(group) * self.patch[0] * self.patch[1] for group in self.groups]
        self.decoder = GroupDecoder(model.config.hidden_size, outs, width=decoder_width, depth=decoder_depth, heads=decoder_heads)
        self.upsampler = Upsampler(len(listed), scales) if multi_scale else None

    def mask(self, keys: Tensor, places: int) -> Mask:
        """Of all tokens: groups one after another, each in raster order."""
        groups = len(self.groups)
        if not self.spatial_mask:
            return random(keys, groups * places, int(self.mask_ratio * groups * places))
        here = random(keys, places, int(self.mask_ratio * places))
        each = torch.arange(0, groups * places, places, device=keys.device)[:, None]
        return Mask(*((numbers[:, None] + each).flatten(1) for numbers in (here.kept, here.hidden)))

    def predictions(self, reduced: Tensor, mask: Mask) -> list[Tensor]:
        """Of every token, of each group (batch, places, its bands * patch): standardised pixels."""
        grid = grid_of(reduced.shape[2:], self.patch)
        predicted: list[Tensor] = self.decoder(self.model(reduced, kept=mask.kept), mask, grid)
        return predicted

    def picture(self, predicted: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Predictions of the groups as one picture (batch, bands, height, width), bands ascending."""
        return torch.cat([unpatchify(values, grid, self.patch) for values in predicted], 1).index_select(1, self.order)

    def losses(self, predicted: Sequence[Tensor], levels: Sequence[Tensor], mask: Mask) -> dict[str, Tensor]:
        """The two terms. levels: standardised pictures, the encoded one first, each twice the size of the one before."""
        targets = [patchify(levels[0][:, group], self.patch) for group in self.groups]
        errors = [(found.float() - target).square().mean(-1) for found, target in zip(predicted, targets, strict=True)]
        terms = {"reconstruction": torch.cat(errors, 1).gather(1, mask.hidden).mean()}
        if self.upsampler is not None:
            finer = self.upsampler(self.picture(predicted, grid_of(levels[0].shape[2:], self.patch)))
            wanted = [level.index_select(1, self.bands) for level in levels[1:]]
            differences = [(found.float() - target).abs().mean() for found, target in zip(finer, wanted, strict=True)]
            terms["multi_scale"] = torch.stack(differences).mean()
        return terms

    def forward(self, batch: Batch) -> Loss:
        """Mean over pictures of the weighted sum of both terms, of the first alone without `multi_scale`."""
        keys = batch["keys"]
        pixels = one(self.views(natural(batch.pixel_values), keys), "sat_mae_pp")
        levels = pyramid(pixels, self.scales)
        embedding = self.model.embedding(pixels)
        mask = self.mask(keys, prod(grid_of(levels[0].shape[2:], self.patch)))
        predicted = self.predictions(levels[0], mask)
        terms = self.losses(predicted, [embedding.standardised(level) for level in levels], mask)
        total = self.reconstruction * terms["reconstruction"]
        if self.upsampler is not None:
            total = total + self.multi_scale * terms["multi_scale"]
        return Loss(total, count=len(pixels), **terms)


class GroupDecoder(nn.Module):
    """Predictions for the tokens of all groups, hidden and seen, from the encoder's features of the seen ones.

    source: the encoder's width; outs: numbers predicted for a token of each group. Positions are place and group side by side,
    three quarters of the width and the rest, as the encoder has them; a class token goes along under a group of its own.
    """

    def __init__(self, source: int, outs: Sequence[int], *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(source, width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(attention_block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.ModuleList(nn.Linear(width, out) for out in outs)
        self.apply(initialise)
        nn.init.normal_(self.token, std=0.02)

    def positions(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the tokens (1, groups * places, width), and of the class token (1, 1, width)."""
        groups = len(self.heads)
        aside = self.width // 4 if groups > 1 else 0
        places = sincos(coordinates(grid), self.width - aside)
        if not aside:
            return places[None], torch.zeros(1, 1, self.width)
        names = sincos(torch.arange(groups + 1, dtype=torch.float32)[:, None], aside)
        table = torch.cat([places.repeat(groups, 1), names[:-1].repeat_interleave(len(places), 0)], 1)
        return table[None], torch.cat([torch.zeros(1, self.width - aside), names[-1:]], 1)[None]

    def forward(self, features: Features, mask: Mask, grid: Sequence[int]) -> list[Tensor]:
        """For each group (batch, places, out), places in the order of the grid."""
        table, aside = (positions.to(features.tokens.device) for positions in self.positions(grid))
        tokens = [self.project(features.tokens) + pick(table, mask.kept), self.token + pick(table, mask.hidden)]
        if features.summary is not None:
            tokens.append(self.project(features.summary)[:, None] + aside)
        x = torch.cat(tokens, 1)
        for block in self.blocks:
            x = block(x)
        inside = pick(self.norm(x), torch.cat([mask.kept, mask.hidden], 1).argsort(1))
        return [head(values) for head, values in zip(self.heads, inside.chunk(len(self.heads), 1), strict=True)]


def reduce_input(model: PatchEncoder, factor: int) -> PatchEmbedding:
    """Make an encoder of pictures one of pictures `factor` times smaller than its data; an encoder so made before stays as it is.

    Its configuration keeps the factor beside the size. A learned table of positions is interpolated. Returns the embedding.
    """
    [given] = model.config.inputs
    if len(given["size"]) != 2:
        raise TilthError(
            "only pictures can be rebuilt at several scales", where="sat_mae_pp", hint="Use 'mae' for signals and volumes."
        )
    embedding: PatchEmbedding = model.embeddings["2d"]  # type: ignore[assignment]
    whole = [extent * given.get("reduced", 1) for extent in given["size"]]
    if any(extent % factor for extent in whole):
        shown = "x".join(map(str, whole))
        raise TilthError(
            f"pictures of {shown} cannot be reduced {factor} times", where="scales", hint="Fewer scales, or another 'size'."
        )
    size = [extent // factor for extent in whole]
    grid = grid_of(size, embedding.patch)
    if embedding.position == "learned":
        embedding.table = nn.Parameter(interpolated(embedding.table.detach(), embedding.grid, grid))
    embedding.size, embedding.grid = tuple(size), grid
    given["size"], given["reduced"] = size, factor
    return embedding
