"""Change between two dates through a few semantic tokens of each: the bitemporal image transformer (arXiv 2103.00208)."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.blocks import MLP, Block, CrossAttention, attention_block
from tilth.backbones.dense_heads import resized
from tilth.backbones.dilated_resnet import DilatedResNet
from tilth.backbones.stage_checks import checked_size, checked_stages
from tilth.backbones.standardise import Standardise
from tilth.backbones.two_dates import channels_of_a_date, checked_dates, two_dates
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt

OUTPUT_STRIDE = 8


class BitConfig(PretrainedConfig):
    """num_channels, mean, std: of both dates together; encoder: settings of `DilatedResNet` but its channels. The others are those of
    `bit_cd`; the number of classes is `num_labels`."""

    model_type = "tilth_bit_cd"

    def __init__(
        self,
        num_channels: int = 6,
        encoder: dict[str, Any] | None = None,
        width: int = 32,
        tokens: int = 4,
        heads: int = 8,
        encoder_depth: int = 1,
        decoder_depth: int = 8,
        shared: int = 0,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.num_channels, self.mean, self.std, self.shared = num_channels, list(mean), list(std), shared
        self.encoder, self.width, self.tokens, self.heads = dict(encoder or {}), width, tokens, heads
        self.encoder_depth, self.decoder_depth = encoder_depth, decoder_depth


class BitChangeDetector(PreTrainedModel):
    """See `bit_cd`."""

    config_class = BitConfig
    main_input_name = "pixel_values"

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        width, heads = config.width, config.heads
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.encoder = DilatedResNet(channels_of_a_date(config.num_channels, config.shared), **config.encoder)
        self.narrowed = nn.Conv2d(config.encoder["hidden_sizes"][-1], width, 3, padding=1)
        self.attended = nn.Conv2d(width, config.tokens, 1, bias=False)
        self.positions = nn.Parameter(torch.randn(2 * config.tokens, width))
        self.mixing = nn.ModuleList(attention_block(width, heads, 2.0) for _ in range(config.encoder_depth))
        self.mixed_norm = nn.LayerNorm(width)
        self.decoding = nn.ModuleList(
            Block(width, CrossAttention(width, heads), MLP(width, 2 * width)) for _ in range(config.decoder_depth)
        )
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(gcd(8, width), width), nn.ReLU(),
            nn.Conv2d(width, int(config.num_labels or 2), 3, padding=1),
        )  # fmt: skip
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands; the encoder has seen to its own."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels of the first date, of the second, shared ones; height, width) -> logits of every pixel."""
        return SemanticSegmenterOutput(logits=self.head(resized(self.difference(pixel_values), pixel_values.shape[2:])))

    def difference(self, pixel_values: Tensor) -> Tensor:
        """|first - second| of both dates' decoded maps, (batch, width, height / 4, width / 4)."""
        fine, *_, coarse = self.encoder(torch.cat(two_dates(self.standardise(pixel_values), self.config.shared)))
        maps = self.narrowed(resized(coarse, fine.shape[2:]))
        pixels = maps.flatten(2).transpose(1, 2)
        tokens = self.mixed(self.attended(maps).flatten(2).softmax(-1) @ pixels)
        for block in self.decoding:
            pixels = block(pixels, tokens)
        first, second = pixels.transpose(1, 2).unflatten(2, maps.shape[2:]).chunk(2)
        return (first - second).abs()

    def mixed(self, tokens: Tensor) -> Tensor:
        """Tokens of the first dates, then of the second (2 batch, tokens, width), each pair of dates having read the other's."""
        together = torch.cat(tokens.chunk(2), 1) + self.positions
        for block in self.mixing:
            together = block(together)
        return torch.cat(self.mixed_norm(together).chunk(2, 1))


@method("backbone", "bit_cd", systems=[6])
class BIT(Backbone):
    """BIT (arXiv 2103.00208) on the first stages of transformers' ResNet, by default ResNet-18's first three, at output stride 8.

    classes: of every pixel. shared: channels at the end that both dates see. stem, depths, hidden_sizes: the encoder's channels before
    the first stage, and blocks and channels of every stage. width: of the tokens and of the map they are drawn from, which heads share
    (the paper's heads have 8 numbers each); tokens: of each date; encoder_depth, decoder_depth: blocks over tokens, and of pixels
    that read them. Tokens are normalised once before they are read, in the authors' code in every block. Learned positions tell
    the dates apart, so their order matters.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        shared: NonNegativeInt = 0,
        stem: PositiveInt = 64,
        depths: tuple[PositiveInt, ...] = (2, 2, 2),
        hidden_sizes: tuple[PositiveInt, ...] = (64, 128, 256),
        width: PositiveInt = 32,
        tokens: PositiveInt = 4,
        heads: PositiveInt = 8,
        encoder_depth: PositiveInt = 1,
        decoder_depth: PositiveInt = 8,
    ) -> None:
        self.classes, self.shared, self.stem, self.depths, self.hidden_sizes = classes, shared, stem, depths, hidden_sizes
        self.width, self.tokens, self.heads = width, tokens, heads
        self.encoder_depth, self.decoder_depth = encoder_depth, decoder_depth

    def build(self, inputs: Sample) -> BitChangeDetector:
        """inputs: what both dates look like together. TilthError for what is no picture, too small a one, or not two dates."""
        where = "backbone.bit_cd"
        checked_stages(where, depths=self.depths, hidden_sizes=self.hidden_sizes)
        checked_size(inputs.size, 2 * OUTPUT_STRIDE, where, "Take larger pictures.")
        checked_dates(inputs, self.shared, where)
        if self.width % self.heads:
            raise TilthError(f"{self.heads} heads cannot share a width of {self.width}", where=f"{where}.heads")
        encoder = {
            "layer": "basic", "stem": self.stem, "depths": list(self.depths), "hidden_sizes": list(self.hidden_sizes),
            "output_stride": OUTPUT_STRIDE,
        }  # fmt: skip
        return BitChangeDetector(
            BitConfig(
                inputs.channels, encoder, self.width, self.tokens, self.heads, self.encoder_depth, self.decoder_depth, self.shared,
                inputs.mean, inputs.std, num_labels=self.classes,
            )
        )  # fmt: skip


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(BitConfig.model_type, BitConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(BitConfig, BitChangeDetector, exist_ok=True)
