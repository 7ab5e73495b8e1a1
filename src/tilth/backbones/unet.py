"""A plain UNet that names every pixel, as one transformers model.

Notable: group norms, so that what is said of a picture does not depend on its batch (batch norms in most implementations); the
way down and the way up are modules of their own, which siamese networks share.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.standardise import Standardise
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import PositiveInt


class UNetConfig(PretrainedConfig):
    """num_channels, mean, std: of the pictures; widths: of every level, from the finest. The number of classes is `num_labels`."""

    model_type = "tilth_unet"

    def __init__(
        self,
        num_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **others: object,
    ) -> None:
        super().__init__(**others)  # type: ignore[arg-type]
        self.num_channels, self.widths, self.mean, self.std = num_channels, list(widths), list(mean), list(std)


class DoubleConvolution(nn.Sequential):
    """Twice a 3 x 3 convolution, a group norm and a ReLU."""

    def __init__(self, source: int, width: int) -> None:
        groups = gcd(8, width)
        super().__init__(
            nn.Conv2d(source, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU(),
        )  # fmt: skip


class Contracting(nn.Module):
    """The way down: the map of every level (batch, width, height / 2^level, width / 2^level), levels joined by 2 x 2 max pooling."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        sources = [channels, *widths[:-1]]
        self.levels = nn.ModuleList(DoubleConvolution(s, w) for s, w in zip(sources, widths, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (batch, channels, height, width) -> maps, the finest first."""
        maps: list[Tensor] = []
        for level in self.levels:
            x = level(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps


class Expanding(nn.Module):
    """The way up: 2 x 2 transposed convolutions, each map joined by the skip of its level and convolved twice.

    widths: of every level, from the finest; skips: channels of what joins at every level but the coarsest.
    """

    def __init__(self, widths: Sequence[int], skips: Sequence[int]) -> None:
        super().__init__()
        pairs = list(zip(widths[1:], widths[:-1], skips, strict=True))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, width, 2, 2) for below, width, _ in pairs)
        self.joined = nn.ModuleList(DoubleConvolution(width + skip, width) for _, width, skip in pairs)

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """x: the coarsest map; skips: from the finest. Odd sizes, of which pooling lost a row, get it back as zeros."""
        for up, join, skip in zip(self.up, self.joined, reversed(skips), strict=True):
            x = up(x)
            x = F.pad(x, (0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]))
            x = join(torch.cat([skip, x], 1))
        return x


class UNet(PreTrainedModel):
    """See `unet`."""

    config_class = UNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.contracting = Contracting(config.num_channels, config.widths)
        self.expanding = Expanding(config.widths, config.widths[:-1])
        self.head = nn.Conv2d(config.widths[0], int(config.num_labels or 2), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels, height, width) in their natural scale -> logits (batch, classes, height, width)."""
        *skips, x = self.contracting(self.standardise(pixel_values))
        return SemanticSegmenterOutput(logits=self.head(self.expanding(x, skips)))


@method("backbone", "unet", systems=[6])
class PlainUNet(Backbone):
    """UNet (arXiv 1505.04597) with padded convolutions and group norms, so that maps keep their size and examples stay apart.

    classes: outputs of every pixel. widths: channels of every level, from the finest. Channels, mean and deviation come from the
    data.
    """

    tokenised = False

    def __init__(self, *, classes: PositiveInt, widths: tuple[PositiveInt, ...] = (16, 32, 64, 128)) -> None:
        self.classes, self.widths = classes, widths

    def build(self, inputs: Sample) -> UNet:
        """inputs: what the pictures look like."""
        checked(inputs, self.widths, "backbone.unet")
        return UNet(UNetConfig(inputs.channels, self.widths, inputs.mean, inputs.std, num_labels=self.classes))


def checked(sample: Sample, widths: Sequence[int], where: str) -> None:
    """TilthError for what is no picture, or too small for as many levels."""
    if len(sample.size) != 2:
        raise TilthError(f"this network reads pictures, not inputs of {len(sample.size)} axes", where=where)
    if min(sample.size) < 2 ** (len(widths) - 1):
        raise TilthError(
            f"pictures of {sample.size[0]}x{sample.size[1]} are too small for {len(widths)} levels", where=f"{where}.widths"
        )


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(UNetConfig.model_type, UNetConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(UNetConfig, UNet, exist_ok=True)
