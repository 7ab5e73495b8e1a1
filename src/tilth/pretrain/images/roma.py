"""RoMA: a causal Mamba encoder reads a picture block by block and says at every block what the next ones look like.

Notable: block order is the order in which tokens are gathered, so the encoder needs to know nothing of blocks; the decoder's
queries never see each other and the mask lets block j see what the encoder made of blocks before j, which the scan's own
causality makes all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import MLP, CrossAttention, initialise
from tilth.backbones.patches import PatchEncoder
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.images.pictures import natural
from tilth.batches.images.rotation_crop import SIZES, turned
from tilth.batches.patches.patchify import grid_of, normalised, patchify
from tilth.batches.patches.regroup import block_numbers, block_order
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.heads import one
from tilth.registry import Fraction, NonNegative, PositiveInt
from tilth.traits import Traits


@method("pretrain", "roma", systems=[7])
class RoMA(Objective):
    """L = L_fine + coarse_weight L_coarse, mean squared errors of the pixels of blocks 1, 2, ...   (arXiv 2503.10392)

    The picture's tokens are cut into blocks of `block` x `block`, in raster order, tokens in raster order within each. Block j is
    predicted from blocks 0 to j - 1; the first is never predicted and the last is never read. Targets are pixels normalised per
    patch. coarse: side in tokens of larger blocks, None: L_fine alone. Both losses compare the same tokens' predictions with the
    same targets, so L_coarse is L_fine without the tokens of those larger blocks that reach into block 0. (The authors' code
    compares block order with raster order there.)

    degrees: the bound of the angle by which a square of each picture is turned before it is read, 0: none is; sizes: of the square
    (`rotation_crop.salient`). A learned vector is added to the tokens in it. target: whether the picture as it was or as it is
    read is predicted: the paper speaks of the former, the authors' code does the latter because one overwrites the other.

    taps: blocks of the encoder, from 1, whose outputs the decoder reads, one for each of its layers. decoder_width,
    decoder_heads: of the decoder, whose attention grows with the square of the number of tokens. views: augmentation, one view.

    The encoder must be causal (mixer 'mamba', directions ['forward'], no class token) and embed all channels together, TilthError
    otherwise; the paper's has `mlp: swiglu` with `mlp_ratio: 2.667`. It starts as every patch encoder does here (Xavier uniform), not
    with the paper's scaled projections. `backbones.mamba_transfer.four_way` makes of it what is used afterwards.
    batch: pixel_values (batch, channels, height, width), keys (batch,)
    """

    traits = Traits(
        family="autoregressive",
        target="pixels of the next block, at several scales",
        guard="fixed target",
        masking="causal",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        block: PositiveInt = 4,
        coarse: PositiveInt | None = 6,
        coarse_weight: NonNegative = 0.1,
        degrees: NonNegative = 45.0,
        sizes: tuple[Fraction, ...] = SIZES,
        target: Literal["original", "rotated"] = "original",
        taps: tuple[PositiveInt, ...] = (6, 8, 10, 12),
        decoder_width: PositiveInt = 512,
        decoder_heads: PositiveInt = 8,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        given = _causal(model.config, taps)
        if degrees and not sizes:
            raise TilthError("there is no size of what is turned", where="roma.sizes", hint="Set 'degrees: 0' to turn nothing.")
        self.block, self.coarse, self.coarse_weight = block, coarse, coarse_weight
        self.degrees, self.sizes, self.target, self.taps = degrees, sizes, target, list(taps)
        self.patch, self.views = tuple(given["patch"]), views.build()
        if degrees:
            self.angle = nn.Parameter(torch.empty(1, 1, model.config.hidden_size).normal_(std=0.02))
        out = given["channels"] * prod(self.patch)
        self.decoder = BlockDecoder(model.config.hidden_size, out, len(taps), width=decoder_width, heads=decoder_heads)

    def read(self, pixels: Tensor, marked: Tensor | None = None) -> Tensor:
        """Predictions of the patches of blocks 1, 2, ... in block order: (batch, patches, channels * patch).

        pixels: as the encoder is to see them; marked: which patches were turned, bool (batch, patches).
        """
        grid = grid_of(pixels.shape[2:], self.patch)
        numbers, order, first, seen = self.order(grid, pixels.device)
        kept = order[:seen].expand(len(pixels), -1)
        extra = None if marked is None else marked[:, :, None] * self.angle
        layers = self.model(pixels, kept=kept, extra=extra, layers=self.taps).layers
        positions = sincos(coordinates(grid).to(pixels.device), self.decoder.width)
        visible = numbers[order[:seen]] < numbers[order[first:], None]
        predicted: Tensor = self.decoder(layers, positions[order[first:]][None], visible)
        return predicted

    def order(self, grid: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, int, int]:
        """Block of each token, tokens in block order, and how many are in block 0 and in all blocks but the last."""
        numbers = block_numbers(grid, self.block, device)
        last = prod([(extent - 1) % self.block + 1 for extent in grid])
        if last == len(numbers):
            raise TilthError(
                f"a grid of {'x'.join(map(str, grid))} patches is one block of {self.block}: there is no next one",
                where="roma.block", hint="Use smaller blocks or patches.",
            )  # fmt: skip
        return (
            numbers,
            block_order(grid, self.block, device),
            prod([min(self.block, extent) for extent in grid]),
            len(numbers) - last,
        )

    def losses(self, predicted: Tensor, targets: Tensor, grid: Sequence[int]) -> dict[str, Tensor]:
        """The two terms. predicted: of `read`; targets: of all patches in raster order."""
        _, order, first, _ = self.order(grid, targets.device)
        errors = (predicted.float() - targets[:, order[first:]]).square().mean(-1)
        terms = {"fine": errors.mean()}
        if self.coarse is not None:
            larger = block_numbers(grid, self.coarse, targets.device)
            counted = ~torch.isin(larger[order[first:]], larger[order[:first]])
            reached = -(-self.block // self.coarse) * self.coarse
            if all(extent <= reached for extent in grid):
                raise TilthError(
                    f"in a grid of {'x'.join(map(str, grid))} patches no block of {self.coarse} lies beyond the first of {self.block}",
                    where="roma.coarse", hint="Use smaller ones, or none: 'coarse: null'.",
                )  # fmt: skip
            # A product and not a selection: how many are counted depends on the grid alone, but a device would have to be asked.
            terms["coarse"] = (errors * counted).sum() / (len(errors) * counted.sum())
        return terms

    def forward(self, batch: Batch) -> Loss:
        """Mean over the pictures' predicted patches, finely and coarsely."""
        keys = batch["keys"]
        pixels = one(self.views(natural(batch.pixel_values), keys), "roma")
        shown, marked = pixels, None
        if self.degrees:
            shown, marked = turned(pixels, keys, self.patch, degrees=self.degrees, sizes=self.sizes)
        wanted = self.model.embedding(pixels).standardised(pixels if self.target == "original" else shown)
        targets = normalised(patchify(wanted, self.patch))
        terms = self.losses(self.read(shown, marked), targets, grid_of(pixels.shape[2:], self.patch))
        total = terms["fine"] + self.coarse_weight * terms["coarse"] if "coarse" in terms else terms["fine"]
        return Loss(total, count=len(pixels), **terms)


class BlockDecoder(nn.Module):
    """Predictions at positions from several layers of an encoder, each read by one layer of cross-attention: no self-attention.

    source: the encoder's width; out: numbers predicted for a patch. Layers are normalised each by itself, put side by side and
    projected together to one stream of keys and values per decoder layer.
    """

    def __init__(self, source: int, out: int, taps: int, *, width: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.tap_norms = nn.ModuleList(nn.LayerNorm(source, eps=1e-6) for _ in range(taps))
        self.project = nn.Linear(taps * source, taps * width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(taps))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out)
        self.apply(initialise)
        nn.init.normal_(self.token, std=0.02)

    def forward(self, layers: Sequence[Tensor], positions: Tensor, visible: Tensor) -> Tensor:
        """layers: outputs of encoder blocks (batch, m, source) each. positions (1, n, width) of what is to be predicted. visible:
        bool (n, m), which encoded tokens each of these may see. Gives (batch, n, out)."""
        normal = [norm(layer) for norm, layer in zip(self.tap_norms, layers, strict=True)]
        streams = self.project(torch.cat(normal, -1)).chunk(len(normal), -1)
        x = (self.token + positions).expand(len(streams[0]), -1, -1)
        for layer, stream in zip(self.layers, streams, strict=True):
            x = layer(x, stream, visible)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """x += cross-attention(norm x, norm source); x += mlp(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.source_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.cross = CrossAttention(width, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width, 4 * width)

    def forward(self, x: Tensor, source: Tensor, visible: Tensor) -> Tensor:
        x = x + self.cross(self.norm(x), self.source_norm(source), visible)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


def _causal(config: Any, taps: Sequence[int]) -> dict[str, Any]:
    """The encoder's one kind of input, once it is known that it can be trained this way."""
    given = config.inputs[0]
    if len(config.inputs) != 1 or len(given["size"]) != 2 or len(given.get("groups") or ()) > 1:
        raise TilthError("RoMA trains an encoder of pictures, their channels embedded together", where="roma")
    if config.mixer != "mamba" or list(config.directions) != ["forward"] or config.class_token:
        hint = "Use a backbone with 'mixer: mamba', 'directions: [forward]' and 'class_token: false'."
        raise TilthError("RoMA trains a causal encoder: its tokens may not know later ones", where="roma", hint=hint)
    depth = config.num_hidden_layers
    if not taps or max(taps) > depth:
        hint = f"Numbers from 1 to {depth}; the paper's lie at a half, two thirds, five sixths and the whole of the depth."
        raise TilthError(f"an encoder of {depth} blocks has no taps {list(taps)}", where="roma.taps", hint=hint)
    return dict(given)
