"""Residual convolutions in stages, for signals, pictures and volumes alike: a small encoder that tells what it sees at every scale.

Notable: instance norms, so that an input's features do not depend on its batch; maps leave as tokens, so whatever reads `Features`
reads them; inputs come in their natural scale and are standardised inside, as `patches` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from tilth.contracts import Backbone, Features, Sample
from tilth.errors import TilthError
from tilth.registry import PositiveInt, method

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ConvStagesConfig(PretrainedConfig):
    """channels, size, mean, std: of the inputs, one number for each channel (axis). The others are those of `conv_stages`."""

    model_type = "tilth_conv_stages"

    def __init__(
        self,
        channels: int = 1,
        size: Sequence[int] = (16, 16, 16),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 1,
        strides: Sequence[int] = (1, 2, 2, 2),
        pooling: str = "stages",
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.channels, self.size, self.mean, self.std = channels, list(size), list(mean), list(std)
        self.widths, self.blocks, self.strides, self.pooling = list(widths), blocks, list(strides), pooling

    @property
    def hidden_size(self) -> int:
        """Numbers in `Features.pooled`."""
        return sum(self.widths) if self.pooling == "stages" else self.widths[-1]

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """As `PatchEncoderConfig.inputs`; patch: what one voxel of the last map stands for."""
        patch = [prod(self.strides)] * len(self.size)
        return [
            {"channels": self.channels, "size": self.size, "patch": patch, "mean": self.mean, "std": self.std, "groups": None}
        ]


class Standardise(nn.Module):
    """(values - mean) / std of each channel, in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ConvStagesConfig) -> None:
        super().__init__()
        self.config = config
        for name, values in self.values().items():
            self.register_buffer(name, values)

    def values(self) -> dict[str, Tensor]:
        """What the buffers start as."""
        given = {"mean": self.config.mean or [0.0] * self.config.channels, "std": self.config.std or [1.0] * self.config.channels}
        wide = (-1, *[1] * len(self.config.size))
        return {name: torch.tensor(values, dtype=torch.float32).reshape(wide) for name, values in given.items()}

    def forward(self, values: Tensor) -> Tensor:
        """values (batch, channels, *size) to the same."""
        return (values.float() - self.mean) / self.std


class ResidualBlock(nn.Module):
    """ReLU(x + norm(conv(ReLU(norm(conv x))))), the first convolution with the stride; x through a 1-convolution where shapes differ.

    kernel: odd side of the convolutions along each axis, None: 3.
    """

    def __init__(self, dims: int, source: int, width: int, stride: int, kernel: Sequence[int] | None = None) -> None:
        super().__init__()
        convolution, sides = CONVOLUTIONS[dims - 1], tuple(kernel or [3] * dims)
        padding = tuple(side // 2 for side in sides)
        self.first = convolution(source, width, sides, stride, padding, bias=False)
        self.second = convolution(width, width, sides, 1, padding, bias=False)
        self.first_norm, self.second_norm = InstanceNorm(width), InstanceNorm(width)
        self.shortcut = convolution(source, width, 1, stride, bias=False) if stride > 1 or source != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, source, *size) -> (batch, width, *size / stride), rounded up."""
        branch = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(self.shortcut(x) + branch)


class InstanceNorm(nn.GroupNorm):
    """Every channel of every example by its own mean and variance (arXiv 1607.08022), for any number of axes."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)


class ConvStages(PreTrainedModel):
    """See `conv_stages`."""

    config_class = ConvStagesConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvStagesConfig) -> None:
        super().__init__(config)
        dims, source = len(config.size), config.channels
        self.standardise = Standardise(config)
        self.stages = nn.ModuleList()
        for width, stride in zip(config.widths, config.strides, strict=True):
            blocks = [
                ResidualBlock(dims, source if n == 0 else width, width, stride if n == 0 else 1) for n in range(config.blocks)
            ]
            self.stages.append(nn.Sequential(*blocks))
            source = width
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Convolutions from He's normal distribution (arXiv 1502.01852)."""
        if isinstance(module, CONVOLUTIONS):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, InstanceNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Standardise):
            for name, values in module.values().items():
                init.copy_(getattr(module, name), values)

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The map each stage leaves, (batch, width, *size divided by the strides so far)."""
        if pixel_values.ndim - 2 != len(self.config.size) or pixel_values.shape[1] != self.config.channels:
            raise TilthError(
                f"this encoder reads {self.config.channels} channels with {len(self.config.size)} axes, not "
                f"{pixel_values.shape[1]} with {pixel_values.ndim - 2}"
            )
        x, found = self.standardise(pixel_values), []
        for number, stage in enumerate(self.stages, 1):
            x = stage(x)
            if x.shape[2:].numel() == 1:
                raise TilthError(
                    f"stage {number} leaves a single voxel of an input of {tuple(pixel_values.shape[2:])}, which its norm makes 0",
                    where="backbone.conv_stages.strides",
                    hint="Use larger inputs, smaller strides or fewer stages.",
                )
            found.append(x)
        return found

    def forward(self, pixel_values: Tensor, *, layers: Sequence[int] = ()) -> Features:
        """Features of inputs (batch, channels, *size) in their natural scale, of any size.

        tokens: the last map, in raster order. layers: numbers of stages, from 1, whose maps (batch, tokens, width of the stage) are
        wanted. pooled: see `conv_stages`.
        """
        tokens = [found.flatten(2).transpose(1, 2) for found in self.maps(pixel_values)]
        means = [found.mean(1) for found in (tokens if self.config.pooling == "stages" else tokens[-1:])]
        if max(layers, default=0) > len(tokens):
            raise TilthError(f"this encoder has {len(tokens)} stages, no number {max(layers)}", where="layers")
        return Features(tokens[-1], torch.cat(means, 1), tuple(tokens[number - 1] for number in layers))


@method("backbone", "conv_stages", systems=[9])
class ConvStagesBackbone(Backbone):
    """A residual network (arXiv 1512.03385) with instance norms, for inputs of one to three axes.

    widths: channels of every stage; blocks: residual blocks of two 3-convolutions in each; strides: by how much each stage divides
    all sides. pooling: what stands for the whole input, the means of all 'stages' maps side by side (VoCo, arXiv 2410.09890) or that
    of the 'last'. Channels, number of axes, mean and deviation come from the data.
    """

    tokenised = False

    def __init__(
        self,
        *,
        widths: tuple[PositiveInt, ...] = (16, 32, 64, 128),
        blocks: PositiveInt = 1,
        strides: tuple[PositiveInt, ...] = (1, 2, 2, 2),
        pooling: Literal["stages", "last"] = "stages",
    ) -> None:
        if len(strides) != len(widths):
            raise TilthError(
                f"there are {len(widths)} 'widths' and {len(strides)} 'strides'",
                where="backbone.conv_stages",
                hint="Give one of each for every stage.",
            )
        self.widths, self.blocks, self.strides, self.pooling = widths, blocks, strides, pooling

    def build(self, inputs: Sample) -> ConvStages:
        """inputs: what the data look like."""
        return ConvStages(
            ConvStagesConfig(
                inputs.channels, inputs.size, inputs.mean, inputs.std, self.widths, self.blocks, self.strides, self.pooling
            )
        )


def register() -> None:
    """Make transformers' Auto classes know the encoder; `backbones.folder` calls it."""
    AutoConfig.register(ConvStagesConfig.model_type, ConvStagesConfig, exist_ok=True)
    AutoModel.register(ConvStagesConfig, ConvStages, exist_ok=True)
