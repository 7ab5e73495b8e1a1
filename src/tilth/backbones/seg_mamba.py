"""SegMamba: convolutions and scans over ever coarser maps of a volume on the way down, a UNETR-style decoder on the way up.

Notable: one rule for volumes whose sections lie further apart than their pixels: an axis with stride 1 is neither reduced nor
convolved over outside the gated convolutions; a size that the strides do not divide is refused, so that nothing is padded or lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import prod

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.conv_stages import CONVOLUTIONS, InstanceNorm, ResidualBlock
from tilth.backbones.dense_heads import TRANSPOSED
from tilth.backbones.mamba import MambaMixer
from tilth.backbones.standardise import Standardise
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt


class SegMambaConfig(PretrainedConfig):
    """num_channels, mean, std: of the inputs. The others are those of `seg_mamba`; the number of outputs is `num_labels`."""

    model_type = "tilth_seg_mamba"

    def __init__(
        self,
        num_channels: int = 1,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (3, 3, 3, 3),
        hidden: int = 512,
        strides: Sequence[int] = (1, 2, 2),
        slices: int | None = None,
        residual: bool = False,
        **others: object,
    ) -> None:
        super().__init__(**others)  # type: ignore[arg-type]
        self.num_channels, self.mean, self.std = num_channels, list(mean), list(std)
        self.widths, self.depths, self.hidden, self.strides = list(widths), list(depths), hidden, list(strides)
        self.slices, self.residual = slices, residual


class Convolved(nn.Sequential):
    """ReLU(norm(conv x)) that keeps the size."""

    def __init__(self, dims: int, width: int, kernel: int) -> None:
        convolution = CONVOLUTIONS[dims - 1]
        super().__init__(convolution(width, width, kernel, padding=kernel // 2), InstanceNorm(width), nn.ReLU())


class GatedConvolution(nn.Module):
    """x + c(c3(c3(x)) + c1(x)), c a 1-convolution, norm and ReLU too: SegMamba's gated spatial convolution (arXiv 2401.13560,
    section 3.2), in the form of TokenUnify's code, which adds its branches and multiplies nothing."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.far = nn.Sequential(Convolved(dims, width, 3), Convolved(dims, width, 3))
        self.near, self.joined = Convolved(dims, width, 1), Convolved(dims, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, *size) to the same."""
        return x + self.joined(self.far(x) + self.near(x))  # type: ignore[no-any-return]


class ScannedMap(nn.Module):
    """A layer norm and a mixer over all voxels of a map in raster order: forwards, backwards and from section to section.

    residual: the map is added to what comes out, which the paper's code leaves out.
    """

    def __init__(self, width: int, slices: int | None, residual: bool) -> None:
        super().__init__()
        self.norm, self.residual = nn.LayerNorm(width), residual
        self.mixer = MambaMixer(
            width, expand=2, directions=("forward", "backward", "slices"), combine="sum", slices=slices
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, *size) to the same."""
        size = tuple(x.shape[2:])
        y = self.mixer(self.norm(x.flatten(2).transpose(1, 2)), size).transpose(1, 2).unflatten(2, size)
        return x + y if self.residual else y


class Stage(nn.Module):
    """A map reduced, convolved and scanned; gives what goes on down, and what the decoder reads of it."""

    def __init__(self, reduced: nn.Module, dims: int, width: int, depth: int, slices: int | None, residual: bool) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims - 1]
        self.reduced, self.gated = reduced, GatedConvolution(dims, width)
        self.scans = nn.Sequential(*(ScannedMap(width, slices, residual) for _ in range(depth)))
        self.told = nn.Sequential(
            InstanceNorm(width), convolution(width, 2 * width, 1), nn.GELU(), convolution(2 * width, width, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map (batch, channels of the stage before, *size) -> two of this one's width and size."""
        x = self.scans(self.gated(self.reduced(x)))
        return x, self.told(x)


class SegMamba(PreTrainedModel):
    """See `seg_mamba`."""

    config_class = SegMambaConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SegMambaConfig) -> None:
        super().__init__(config)
        dims, stride = len(config.strides), tuple(config.strides)
        convolution, up = CONVOLUTIONS[dims - 1], TRANSPOSED[dims - 1]
        kernel = tuple(3 if step > 1 else 1 for step in stride)
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        wide = tuple(7 if step > 1 else 1 for step in stride)
        reduced: list[nn.Module] = [
            convolution(config.num_channels, config.widths[0], wide, stride, tuple(side // 2 for side in wide))
        ]
        for source, width in zip(config.widths, config.widths[1:]):
            reduced.append(nn.Sequential(InstanceNorm(source), convolution(source, width, stride, stride)))
        self.stages = nn.ModuleList(
            Stage(given, dims, width, depth, config.slices, config.residual)
            for given, width, depth in zip(reduced, config.widths, config.depths, strict=True)
        )
        sources, targets = [config.num_channels, *config.widths], [*config.widths, config.hidden]
        self.skips = nn.ModuleList(
            ResidualBlock(dims, source, width, 1, kernel) for source, width in zip(sources, targets, strict=True)
        )
        self.up = nn.ModuleList(up(below, width, stride, stride) for below, width in zip(targets[1:], targets[:-1], strict=True))
        self.joined = nn.ModuleList(ResidualBlock(dims, 2 * width, width, 1, kernel) for width in targets[:-1])
        self.last = ResidualBlock(dims, config.widths[0], config.widths[0], 1, kernel)
        self.outputs = convolution(config.widths[0], int(config.num_labels or 1), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels, *size) in their natural scale -> logits (batch, outputs, *size).

        Raises TilthError where the size is not a multiple of what the stages divide it by.
        """
        factors = [step ** len(self.stages) for step in self.config.strides]
        size = tuple(pixel_values.shape[2:])
        if len(size) != len(factors) or any(extent % by for extent, by in zip(size, factors)):
            raise TilthError(
                f"an input of {'x'.join(map(str, size))} cannot be halved as asked", where="backbone.seg_mamba.strides",
                hint=f"Every side must be a multiple of {'x'.join(map(str, factors))}.",
            )  # fmt: skip
        x = values = self.standardise(pixel_values)
        told = [values]
        for stage in self.stages:
            x, seen = stage(x)
            told.append(seen)
        *skips, x = (skip(seen) for skip, seen in zip(self.skips, told, strict=True))
        for up, join, skip in zip(reversed(self.up), reversed(self.joined), reversed(skips), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return SemanticSegmenterOutput(logits=self.outputs(self.last(x)))

    def with_outputs(self, count: int) -> SegMamba:
        """The same network, its weights shared, under a fresh last layer of `count` outputs."""
        made = deepcopy(self, {id(part): part for part in self.children()})  # parts that are known already are not copied
        made.config.num_labels = count
        convolution = CONVOLUTIONS[len(self.config.strides) - 1]
        made.outputs = convolution(self.config.widths[0], count, 1, device=self.device, dtype=self.dtype)
        return made


@method("backbone", "seg_mamba", systems=[47])
class SegMambaBackbone(Backbone):
    """TokenUnify's network (arXiv 2405.16847): SegMamba with anisotropic kernels, volume in, volume out; pictures too.

    outputs: channels that come out at the size of the input: as many as go in to pre-train it by rebuilding. widths, depths: channels
    and scanned layers of every stage (0: convolutions only); hidden: channels of the deepest map of the decoder. strides: 2 for every
    axis that each stage halves, 1 for one it leaves alone, (1, 2, 2) for sections far apart. slices: see `MambaMixer`; the paper has
    5, None takes the sections. residual: around scans. Sizes of the paper: 28 M (these widths, hidden 512), 113 M (twice), 207 M
    (three times). Channels, mean and deviation come from the data. Deviates in plain instead of leaky ReLUs in the decoder.
    """

    tokenised = False

    def __init__(
        self,
        *,
        outputs: PositiveInt = 1,
        widths: tuple[PositiveInt, ...] = (32, 64, 128, 256),
        depths: tuple[NonNegativeInt, ...] = (3, 3, 3, 3),
        hidden: PositiveInt = 512,
        strides: tuple[PositiveInt, ...] = (1, 2, 2),
        slices: PositiveInt | None = None,
        residual: bool = False,
    ) -> None:
        if len(depths) != len(widths):
            raise TilthError(f"{len(widths)} 'widths' and {len(depths)} 'depths'", where="backbone.seg_mamba",
                             hint="Give one of each for every stage.")  # fmt: skip
        if not 1 <= len(strides) <= 3 or set(strides) - {1, 2} or prod(strides) == 1:
            raise TilthError(
                f"strides {list(strides)}", where="backbone.seg_mamba.strides", hint="1 or 2 for every axis, one at least 2."
            )
        self.outputs, self.widths, self.depths, self.hidden = outputs, widths, depths, hidden
        self.strides, self.slices, self.residual = strides, slices, residual

    def build(self, inputs: Sample) -> SegMamba:
        """inputs: what the data look like."""
        if len(inputs.size) != len(self.strides):
            raise TilthError(
                f"{len(self.strides)} 'strides' for inputs of {len(inputs.size)} axes", where="backbone.seg_mamba.strides"
            )
        return SegMamba(
            SegMambaConfig(
                inputs.channels, inputs.mean, inputs.std, self.widths, self.depths, self.hidden, self.strides, self.slices,
                self.residual, num_labels=self.outputs,
            )
        )  # fmt: skip


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(SegMambaConfig.model_type, SegMambaConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SegMambaConfig, SegMamba, exist_ok=True)
