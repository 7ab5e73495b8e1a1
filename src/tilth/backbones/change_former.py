"""ChangeFormer: SegFormer's encoder for both dates, their maps compared at every scale, an MLP decoder (arXiv 2201.01293)."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    PretrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerModel,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.conv_stages import ResidualBlock
from tilth.backbones.dense_heads import resized
from tilth.backbones.stage_checks import checked_size, checked_stages
from tilth.backbones.standardise import Standardise
from tilth.backbones.two_dates import channels_of_a_date, checked_dates, two_dates
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt

_HINT = "Take larger pictures, or smaller 'reductions'."


class ChangeFormerConfig(PretrainedConfig):
    """num_channels, mean, std: of both dates together. The others are those of `change_former`; the number of classes is
    `num_labels`."""

    model_type = "tilth_change_former"

    def __init__(
        self,
        num_channels: int = 6,
        depths: Sequence[int] = (3, 3, 4, 3),
        hidden_sizes: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        width: int = 256,
        shared: int = 0,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.num_channels, self.mean, self.std, self.shared = num_channels, list(mean), list(std), shared
        self.depths, self.hidden_sizes, self.heads = list(depths), list(hidden_sizes), list(heads)
        self.reductions, self.width = list(reductions), width

    @property
    def smallest(self) -> int:
        """Pixels that a picture needs along each axis: a stage's map, rounded up, must not be smaller than its reduction."""
        return max(4 * 2**number * (reduction - 1) + 1 for number, reduction in enumerate(self.reductions))

    def segformer(self) -> SegformerConfig:
        """The encoder's."""
        coarser = len(self.depths) - 1
        return SegformerConfig(
            num_channels=channels_of_a_date(self.num_channels, self.shared), num_encoder_blocks=len(self.depths),
            depths=self.depths, hidden_sizes=self.hidden_sizes, num_attention_heads=self.heads, sr_ratios=self.reductions,
            patch_sizes=[7] + [3] * coarser, strides=[4] + [2] * coarser, mlp_ratios=[4] * len(self.depths), drop_path_rate=0.0,
        )  # fmt: skip


class ChangeFormer(PreTrainedModel):
    """See `change_former`."""

    config_class = ChangeFormerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ChangeFormerConfig) -> None:
        super().__init__(config)
        hidden, width = config.hidden_sizes, config.width
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.encoder = SegformerModel(config.segformer())
        self.compared = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * size, size, 3, padding=1), nn.ReLU(), nn.GroupNorm(gcd(8, size), size)) for size in hidden
        )
        self.projected = nn.ModuleList(nn.Conv2d(size, width, 1) for size in hidden)
        self.joined = nn.Conv2d(len(hidden) * width, width, 1)
        self.raised = nn.Sequential(
            nn.ConvTranspose2d(width, width, 4, 2, 1), ResidualBlock(2, width, width, 1),
            nn.ConvTranspose2d(width, width, 4, 2, 1), ResidualBlock(2, width, width, 1),
        )  # fmt: skip
        self.head = nn.Conv2d(width, int(config.num_labels or 2), 3, padding=1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands; the encoder has seen to its own."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels of the first date, of the second, shared ones; height, width) -> logits of every pixel.

        TilthError for pictures that are too small for the encoder's reductions.
        """
        height, width = pixel_values.shape[2:]
        checked_size((height, width), self.config.smallest, "backbone.change_former", _HINT)
        maps = self.differences(pixel_values)
        projected = [resized(layer(x), maps[0].shape[2:]) for layer, x in zip(self.projected, maps, strict=True)]
        # The finest map is rounded up to whole strides of 4; what was raised beyond the picture is cut off.
        raised = self.raised(self.joined(torch.cat(projected, 1)))[:, :, :height, :width]
        return SemanticSegmenterOutput(logits=self.head(raised))

    def differences(self, pixel_values: Tensor) -> list[Tensor]:
        """What every stage's pair of maps says of change (batch, hidden size, height / stride, width / stride), strides 4, 8, ..."""
        dates = torch.cat(two_dates(self.standardise(pixel_values), self.config.shared))
        stages = self.encoder(dates, output_hidden_states=True).hidden_states
        return [compare(torch.cat(x.chunk(2), 1)) for compare, x in zip(self.compared, stages, strict=True)]


@method("backbone", "change_former", systems=[6])
class ChangeFormerDetector(Backbone):
    """ChangeFormer (arXiv 2201.01293) on transformers' SegFormer encoder (arXiv 2105.15203), from fresh weights.

    classes: of every pixel. shared: channels at the end that both dates see. depths, hidden_sizes, heads, reductions: blocks, channels,
    attention heads and the reduction of keys of every stage (strides 4, 8, ...). width: channels of the decoder. Maps are compared
    by the paper's module (a convolution, a ReLU and a norm; the authors' code has a deeper one) and go up by two transposed
    convolutions with residual blocks, as in the authors' code. Group and instance norms for their batch norms, no dropout, and no
    outputs at coarser scales.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        shared: NonNegativeInt = 0,
        depths: tuple[PositiveInt, ...] = (3, 3, 4, 3),
        hidden_sizes: tuple[PositiveInt, ...] = (64, 128, 320, 512),
        heads: tuple[PositiveInt, ...] = (1, 2, 4, 8),
        reductions: tuple[PositiveInt, ...] = (8, 4, 2, 1),
        width: PositiveInt = 256,
    ) -> None:
        self.classes, self.shared, self.depths, self.hidden_sizes = classes, shared, depths, hidden_sizes
        self.heads, self.reductions, self.width = heads, reductions, width

    def build(self, inputs: Sample) -> ChangeFormer:
        """inputs: what both dates look like together. TilthError for what is no picture, too small a one, or not two dates."""
        where = "backbone.change_former"
        lists = {"depths": self.depths, "hidden_sizes": self.hidden_sizes, "heads": self.heads, "reductions": self.reductions}
        checked_stages(where, **lists)
        for size, heads in zip(self.hidden_sizes, self.heads, strict=True):
            if size % heads:
                raise TilthError(f"{heads} heads cannot share a width of {size}", where=f"{where}.heads")
        config = ChangeFormerConfig(
            inputs.channels, self.depths, self.hidden_sizes, self.heads, self.reductions, self.width, self.shared, inputs.mean,
            inputs.std, num_labels=self.classes,
        )  # fmt: skip
        checked_size(inputs.size, config.smallest, where, _HINT)
        checked_dates(inputs, self.shared, where)
        return ChangeFormer(config)


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(ChangeFormerConfig.model_type, ChangeFormerConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ChangeFormerConfig, ChangeFormer, exist_ok=True)
