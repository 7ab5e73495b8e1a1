"""DeepLabV3+: a dilated encoder, a pyramid of dilated convolutions, and a small decoder that reads the finest stage again."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.dense_heads import resized
from tilth.backbones.dilated_resnet import DilatedResNet
from tilth.backbones.stage_checks import checked_size, checked_stages
from tilth.backbones.standardise import Standardise
from tilth.contracts import Backbone, Sample, method
from tilth.registry import PositiveInt


class DeepLabV3PlusConfig(PretrainedConfig):
    """num_channels, mean, std: of the pictures; encoder: settings of `DilatedResNet` but its channels; rates: as the encoder's output
    stride has them; width and low as in `deeplab_v3_plus`. The number of classes is `num_labels`."""

    model_type = "tilth_deeplab_v3_plus"

    def __init__(
        self,
        num_channels: int = 3,
        encoder: dict[str, Any] | None = None,
        rates: Sequence[int] = (6, 12, 18),
        width: int = 256,
        low: int = 48,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.num_channels, self.mean, self.std = num_channels, list(mean), list(std)
        self.encoder, self.rates, self.width, self.low = dict(encoder or {}), list(rates), width, low


class Convolved(nn.Sequential):
    """ReLU(norm(conv x)) that keeps the size; groups: of the norm, None: 8 or fewer."""

    def __init__(self, source: int, width: int, kernel: int, dilation: int = 1, groups: int | None = None) -> None:
        super().__init__(
            nn.Conv2d(source, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
            nn.GroupNorm(groups or gcd(8, width), width), nn.ReLU(),
        )  # fmt: skip


class AtrousPyramid(nn.Module):
    """A 1 x 1 convolution, 3 x 3 ones of every dilation in `rates` and the mean over all pixels, side by side, then joined."""

    def __init__(self, source: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Convolved(source, width, 1), *(Convolved(source, width, 3, rate) for rate in rates)])
        # Of a single pixel, a group with one channel would be normalised to nothing.
        self.pooled = Convolved(source, width, 1, groups=1)
        self.joined = Convolved((len(rates) + 2) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, source, height, width) -> (batch, width, height, width)."""
        maps = [branch(x) for branch in self.branches]
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand_as(maps[0])
        return self.joined(torch.cat([*maps, pooled], 1))  # type: ignore[no-any-return]


class DeepLabV3Plus(PreTrainedModel):
    """See `deeplab_v3_plus`."""

    config_class = DeepLabV3PlusConfig
    main_input_name = "pixel_values"

    def __init__(self, config: DeepLabV3PlusConfig) -> None:
        super().__init__(config)
        hidden, width = config.encoder["hidden_sizes"], config.width
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.encoder = DilatedResNet(config.num_channels, **config.encoder)
        self.pyramid = AtrousPyramid(hidden[-1], width, config.rates)
        self.low = Convolved(hidden[0], config.low, 1)
        self.decoder = nn.Sequential(Convolved(width + config.low, width, 3), Convolved(width, width, 3))
        self.head = nn.Conv2d(width, int(config.num_labels or 2), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands; the encoder has seen to its own."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels, height, width) in their natural scale -> logits (batch, classes, height, width)."""
        fine, *_, coarse = self.encoder(self.standardise(pixel_values))
        low = self.low(fine)
        x = self.decoder(torch.cat([resized(self.pyramid(coarse), low.shape[2:]), low], 1))
        return SemanticSegmenterOutput(logits=resized(self.head(x), pixel_values.shape[2:]))


@method("backbone", "deeplab_v3_plus", systems=[6])
class DeepLab(Backbone):
    """DeepLabV3+ (arXiv 1802.02611) on transformers' ResNet, by default ResNet-18, from fresh weights.

    classes: of every pixel. layer, stem, depths, hidden_sizes: the encoder's blocks, channels before the first stage, and blocks and
    channels of every stage (strides 4, 8, 16, 32). output_stride: the least reduction kept; stages beyond it are dilated. rates: the
    pyramid's dilations at output stride 16, doubled at 8. width: channels of pyramid and decoder; low: of the first stage's map where
    it joins. The encoder's norms are batch norms; the rest has group norms and plain convolutions, not separable ones.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        layer: Literal["basic", "bottleneck"] = "basic",
        stem: PositiveInt = 64,
        depths: tuple[PositiveInt, ...] = (2, 2, 2, 2),
        hidden_sizes: tuple[PositiveInt, ...] = (64, 128, 256, 512),
        output_stride: Literal[8, 16] = 16,
        rates: tuple[PositiveInt, ...] = (6, 12, 18),
        width: PositiveInt = 256,
        low: PositiveInt = 48,
    ) -> None:
        self.classes, self.layer, self.stem, self.depths, self.hidden_sizes = classes, layer, stem, depths, hidden_sizes
        self.output_stride, self.rates, self.width, self.low = output_stride, rates, width, low

    def build(self, inputs: Sample) -> DeepLabV3Plus:
        """inputs: what the pictures look like. TilthError for what is no picture, or has a coarsest map of one pixel."""
        where = "backbone.deeplab_v3_plus"
        checked_stages(where, depths=self.depths, hidden_sizes=self.hidden_sizes)
        checked_size(inputs.size, 2 * self.output_stride, where, "Take larger pictures, or output_stride 8.")
        encoder = {
            "layer": self.layer, "stem": self.stem, "depths": list(self.depths), "hidden_sizes": list(self.hidden_sizes),
            "output_stride": self.output_stride,
        }  # fmt: skip
        rates = [rate * 16 // self.output_stride for rate in self.rates]
        return DeepLabV3Plus(
            DeepLabV3PlusConfig(
                inputs.channels, encoder, rates, self.width, self.low, inputs.mean, inputs.std, num_labels=self.classes
            )
        )


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(DeepLabV3PlusConfig.model_type, DeepLabV3PlusConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(DeepLabV3PlusConfig, DeepLabV3Plus, exist_ok=True)
