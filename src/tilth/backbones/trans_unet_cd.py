"""TransUNetCD: a residual network sees each date, a transformer the coarsest maps of both, and a UNet's way up says what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.blocks import attention_block
from tilth.backbones.deeplab_v3_plus import Convolved
from tilth.backbones.dense_heads import resized
from tilth.backbones.positions import interpolated
from tilth.backbones.stage_checks import checked_size, checked_stages
from tilth.backbones.standardise import Standardise
from tilth.backbones.two_dates import channels_of_a_date, checked_dates, two_dates
from tilth.backbones.unet import DoubleConvolution
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt

_WHERE, _HINT = "backbone.trans_unet_cd", "Take larger pictures, or fewer stages."


class TransUNetConfig(PretrainedConfig):
    """num_channels, size, mean, std: of both dates together; size is what positions are learnt for. The others are those of
    `trans_unet_cd`; the number of classes is `num_labels`."""

    model_type = "tilth_trans_unet_cd"

    def __init__(
        self,
        num_channels: int = 6,
        size: Sequence[int] = (224, 224),
        layer: str = "bottleneck",
        stem: int = 64,
        depths: Sequence[int] = (3, 4, 6),
        hidden_sizes: Sequence[int] = (256, 512, 1024),
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        widths: Sequence[int] = (512, 256, 128, 64, 16),
        shared: int = 0,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.num_channels, self.size, self.mean, self.std, self.shared = num_channels, list(size), list(mean), list(std), shared
        self.layer, self.stem, self.depths, self.hidden_sizes = layer, stem, list(depths), list(hidden_sizes)
        self.width, self.depth, self.heads, self.widths = width, depth, heads, list(widths)

    @property
    def stride(self) -> int:
        """Of the coarsest map."""
        return int(2 ** (len(self.depths) + 1))

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis of pictures of that size."""
        return tuple(-(-side // self.stride) for side in self.size)

    def resnet(self) -> ResNetConfig:
        """The encoder's."""
        return ResNetConfig(
            num_channels=channels_of_a_date(self.num_channels, self.shared), embedding_size=self.stem,
            hidden_sizes=self.hidden_sizes, depths=self.depths, layer_type=self.layer,
        )  # fmt: skip


class DifferenceEnhancement(nn.Module):
    """Pixels of a difference y = conv x + conv conv x, weighed by sigmoid(7 x 7 conv of their mean and maximum over channels), the
    spatial attention of arXiv 1807.06521 (DEM)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.second = Convolved(channels, width, 3), Convolved(width, width, 3)
        self.weights = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, width, height, width)."""
        x = self.first(x)
        x = x + self.second(x)
        return x * self.weights(torch.stack([x.mean(1), x.amax(1)], 1))  # type: ignore[no-any-return]


class TransUNetCD(PreTrainedModel):
    """See `trans_unet_cd`."""

    config_class = TransUNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__(config)
        width, widths = config.width, config.widths
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.encoder = ResNetModel(config.resnet())
        self.projected = nn.Conv2d(2 * config.hidden_sizes[-1], width, 1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, config.grid[0] * config.grid[1], width))
        self.blocks = nn.ModuleList(attention_block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.narrowed = DoubleConvolution(width, widths[0])
        skips = [config.stem, *config.hidden_sizes[:-1]][::-1]
        self.up = nn.ModuleList(
            DoubleConvolution(below + 2 * skip, here) for below, here, skip in zip(widths[:-2], widths[1:-1], skips, strict=True)
        )
        self.last = DoubleConvolution(widths[-2], widths[-1])
        self.enhanced = DifferenceEnhancement(channels_of_a_date(config.num_channels, config.shared), widths[-1])
        self.head = nn.Conv2d(widths[-1], int(config.num_labels or 2), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands; the encoder has seen to its own."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels of the first date, of the second, shared ones; height, width) -> logits of every pixel.

        TilthError for pictures that are too small for the encoder's stages.
        """
        size = pixel_values.shape[2:]
        checked_size(size, 2 * self.config.stride, _WHERE, _HINT)
        first, second = two_dates(self.standardise(pixel_values), self.config.shared)
        *skips, coarse = self.maps(first, second)
        x = self.context(coarse)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(torch.cat([resized(x, skip.shape[2:]), skip], 1))
        x = self.last(resized(x, size)) * self.enhanced(first - second)
        return SemanticSegmenterOutput(logits=self.head(x))

    def maps(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Both dates' maps of stem and stages side by side (batch, twice the channels, height / stride, width / stride), strides 2,
        4, 8, ..., rounded up."""
        fine = self.encoder.embedder.embedder(torch.cat([first, second]))
        stages = self.encoder.encoder(self.encoder.embedder.pooler(fine), output_hidden_states=True).hidden_states[1:]
        return [torch.cat(x.chunk(2), 1) for x in (fine, *stages)]

    def context(self, coarse: Tensor) -> Tensor:
        """The coarsest maps of both dates -> the same place's map, every pixel of it having read all the others."""
        grid = tuple(coarse.shape[2:])
        tokens = self.projected(coarse).flatten(2).transpose(1, 2) + interpolated(self.positions, self.config.grid, grid)
        for block in self.blocks:
            tokens = block(tokens)
        return self.narrowed(self.norm(tokens).transpose(1, 2).unflatten(2, grid))  # type: ignore[no-any-return]


@method("backbone", "trans_unet_cd", systems=[6])
class HybridChangeDetector(Backbone):
    """TransUNetCD (doi 10.1109/TGRS.2022.3169479) on the first stages of transformers' ResNet, by default ResNet-50's first three, and
    a transformer of ViT-B's size, from fresh weights.

    classes: of every pixel. shared: channels at the end that both dates see. layer, stem, depths, hidden_sizes: the encoder's blocks,
    channels before the first stage, and blocks and channels of every stage (strides 4, 8, 16). width, depth, heads: of the transformer,
    whose tokens are pixels of both dates' last maps; on other sizes than that of the data its learned positions are interpolated.
    widths: channels of the way up, from the transformer's map to the picture. What it gives is multiplied by the enhanced difference
    of both pictures. The order of dates matters. Group norms outside the encoder, no dropout. In BlackBench's variant
    (arXiv 2311.12056) the transformer reads each date by itself and nothing is multiplied.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        shared: NonNegativeInt = 0,
        layer: Literal["basic", "bottleneck"] = "bottleneck",
        stem: PositiveInt = 64,
        depths: tuple[PositiveInt, ...] = (3, 4, 6),
        hidden_sizes: tuple[PositiveInt, ...] = (256, 512, 1024),
        width: PositiveInt = 768,
        depth: PositiveInt = 12,
        heads: PositiveInt = 12,
        widths: tuple[PositiveInt, ...] = (512, 256, 128, 64, 16),
    ) -> None:
        self.classes, self.shared, self.layer, self.stem, self.depths = classes, shared, layer, stem, depths
        self.hidden_sizes, self.width, self.depth, self.heads, self.widths = hidden_sizes, width, depth, heads, widths

    def build(self, inputs: Sample) -> TransUNetCD:
        """inputs: what both dates look like together. TilthError for what is no picture, too small a one, or not two dates, and for
        widths that do not fit."""
        checked_stages(_WHERE, depths=self.depths, hidden_sizes=self.hidden_sizes)
        if self.width % self.heads:
            raise TilthError(f"{self.heads} heads cannot share a width of {self.width}", where=f"{_WHERE}.heads")
        if len(self.widths) != len(self.depths) + 2:
            raise TilthError(
                f"the way up from {len(self.depths)} stages has {len(self.depths) + 2} widths, not {len(self.widths)}",
                where=f"{_WHERE}.widths", hint="Give one for the transformer's map, one for each doubling but the last, one for the last.",
            )  # fmt: skip
        config = TransUNetConfig(
            inputs.channels, inputs.size, self.layer, self.stem, self.depths, self.hidden_sizes, self.width, self.depth, self.heads,
            self.widths, self.shared, inputs.mean, inputs.std, num_labels=self.classes,
        )  # fmt: skip
        checked_size(inputs.size, 2 * config.stride, _WHERE, _HINT)
        checked_dates(inputs, self.shared, _WHERE)
        return TransUNetCD(config)


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(TransUNetConfig.model_type, TransUNetConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(TransUNetConfig, TransUNetCD, exist_ok=True)
