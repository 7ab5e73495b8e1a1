"""ADHR-CDNet: branches of every resolution side by side, told the difference of both dates at each, weighed pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.conv_stages import ResidualBlock
from tilth.backbones.deeplab_v3_plus import Convolved
from tilth.backbones.dense_heads import resized
from tilth.backbones.stage_checks import checked_size
from tilth.backbones.standardise import Standardise
from tilth.backbones.two_dates import channels_of_a_date, checked_dates, two_dates
from tilth.backbones.unet import DoubleConvolution, UNetConfig
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt

_WHERE, _HINT = "backbone.adhr_cd_net.widths", "Take larger pictures, or fewer branches."


class ADHRConfig(UNetConfig):
    """As `UNetConfig`, of all channels together; blocks, hidden and shared as in `adhr_cd_net`."""

    model_type = "tilth_adhr_cd_net"

    def __init__(self, *given: object, blocks: int = 4, hidden: int = 512, shared: int = 0, **others: object) -> None:
        super().__init__(*given, **others)  # type: ignore[arg-type]
        self.blocks, self.hidden, self.shared = blocks, hidden, shared

    @property
    def smallest(self) -> int:
        """Pixels that a picture needs along each axis: two on the coarsest map, whose norms would make a single one 0."""
        return int(2 ** len(self.widths))


class Normed(nn.Sequential):
    """norm(conv x), the convolution with a stride."""

    def __init__(self, source: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(source, width, kernel, stride, kernel // 2, bias=False), nn.GroupNorm(gcd(8, width), width)
        )  # fmt: skip


class Bottleneck(nn.Module):
    """ReLU(x + norm(1 x 1 conv of 3 x 3 conv of 1 x 1 conv of x)), `inner` channels in between; x through a 1 x 1 convolution where
    channels differ."""

    def __init__(self, source: int, inner: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(Convolved(source, inner, 1), Convolved(inner, inner, 3), Normed(inner, width, 1))
        self.shortcut = Normed(source, width, 1) if source != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, source channels, height, width) -> the same with the given channels."""
        return F.relu(self.shortcut(x) + self.branch(x))


class DifferentialPyramid(nn.Module):
    """|first - second| of what one network sees of each date at full size, a half, a quarter ... of it (DPM)."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.finest = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.coarser = nn.ModuleList(DoubleConvolution(source, width) for source, width in pairwise(widths))

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """(batch, channels, height, width) twice -> for every level (batch, width, height / 2^level, width / 2^level), rounded up."""
        maps = [self.finest(torch.cat([first, second]))]
        for level in self.coarser:
            maps.append(level(F.max_pool2d(maps[-1], 2, ceil_mode=True)))
        pairs = [x.chunk(2) for x in maps]
        return [(a - b).abs() for a, b in pairs]


class Gathered(nn.Module):
    """One branch as the sum of all, brought to its size: finer ones by 3 x 3 convolutions of stride 2, coarser ones by a 1 x 1
    convolution and interpolation (HRNet, arXiv 1908.07919). target: its number; that of no source begins a coarser branch."""

    def __init__(self, widths: Sequence[int], sources: int, target: int) -> None:
        super().__init__()
        self.measure = min(target, sources - 1)  # whose path ends at the target's size, and needs no interpolation
        self.paths = nn.ModuleList(self.path(widths, source, target) for source in range(sources))

    @staticmethod
    def path(widths: Sequence[int], source: int, target: int) -> nn.Module:
        """From one branch to another; all but its last convolution have a ReLU."""
        if source >= target:
            return nn.Identity() if source == target else Normed(widths[source], widths[target], 1)
        steps: list[nn.Module] = []
        for before, after in pairwise(widths[source : target + 1]):
            steps += [Normed(before, after, 3, 2), nn.ReLU()]
        return nn.Sequential(*steps[:-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps: of all branches, the finest first."""
        parts = [path(x) for path, x in zip(self.paths, maps, strict=True)]
        size = parts[self.measure].shape[2:]
        return F.relu(torch.stack([resized(part, size) for part in parts]).sum(0))


class Parallel(nn.ModuleList):
    """Residual blocks of every branch, on its own map."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__(nn.Sequential(*(ResidualBlock(2, width, width, 1) for _ in range(blocks))) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps: of all branches, to the same."""
        return [blocks(x) for blocks, x in zip(self, maps, strict=True)]


class Exchange(nn.ModuleList):
    """All branches told of each other, and one more."""

    def __init__(self, widths: Sequence[int], sources: int) -> None:
        super().__init__(Gathered(widths, sources, target) for target in range(sources + 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps: of all branches, the finest first -> the same, and the coarser one's."""
        return [gathered(maps) for gathered in self]


class MultiScaleAttention(nn.Module):
    """All branches at full size with the finest one's channels, weighed at every pixel by a softmax over branches (MSSAM)."""

    def __init__(self, widths: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.narrowed = nn.ModuleList([nn.Identity(), *(Normed(width, widths[0], 1) for width in widths[1:])])
        self.scores = nn.Sequential(
            nn.Conv2d(len(widths) * widths[0], hidden, 3, padding=1), nn.Conv2d(hidden, len(widths), 1)
        )  # fmt: skip

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps: the finest first -> (batch, the finest one's channels, height, width)."""
        size = maps[0].shape[2:]
        raised = [resized(narrow(x), size) for narrow, x in zip(self.narrowed, maps, strict=True)]
        weights = self.scores(torch.cat(raised, 1)).softmax(1)
        return (torch.stack(raised, 1) * weights[:, :, None]).sum(1)


class ADHRCDNet(PreTrainedModel):
    """See `adhr_cd_net`."""

    config_class = ADHRConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ADHRConfig) -> None:
        super().__init__(config)
        widths, each = config.widths, channels_of_a_date(config.num_channels, config.shared)
        stem, wide = 2 * widths[0], 8 * widths[0]
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.pyramid = DifferentialPyramid(each, widths)
        self.together = nn.Conv2d(2 * each, widths[0], 3, padding=1)
        self.stem = nn.Sequential(nn.GroupNorm(gcd(8, stem), stem), nn.ReLU())
        self.early = nn.Sequential(*(Bottleneck(wide if n else stem, stem, wide) for n in range(config.blocks)))
        self.parted = nn.ModuleList(
            nn.Sequential(Normed(wide, width, 3, stride), nn.ReLU()) for width, stride in zip(widths[:2], (1, 2), strict=True)
        )
        self.told = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[1:])
        self.stages = nn.ModuleList(Parallel(widths[:n], config.blocks) for n in range(2, len(widths) + 1))
        self.exchanges = nn.ModuleList(Exchange(widths, n) for n in range(2, len(widths)))
        self.attention = MultiScaleAttention(widths, config.hidden)
        self.head = nn.Conv2d(widths[0], int(config.num_labels or 2), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels of the first date, of the second, shared ones; height, width) -> logits of every pixel.

        TilthError for pictures that are too small for the branches.
        """
        checked_size(pixel_values.shape[2:], self.config.smallest, _WHERE, _HINT)
        return SemanticSegmenterOutput(logits=self.head(self.attention(self.branches(pixel_values))))

    def branches(self, pixel_values: Tensor) -> list[Tensor]:
        """The last map of every branch (batch, width, height / 2^branch, width / 2^branch), rounded up; the finest first."""
        dates = two_dates(self.standardise(pixel_values), self.config.shared)
        finest, *differences = self.pyramid(*dates)
        x = self.early(self.stem(torch.cat([finest, self.together(torch.cat(dates, 1))], 1)))
        maps = [part(x) for part in self.parted]
        for number, (tell, difference, stage) in enumerate(zip(self.told, differences, self.stages, strict=True)):
            if number:
                maps = self.exchanges[number - 1](maps)
            maps[-1] = tell(torch.cat([maps[-1], difference], 1))
            maps = stage(maps)
        return maps


@method("backbone", "adhr_cd_net", systems=[6])
class AttentiveDifferentialNet(Backbone):
    """ADHR-CDNet (Zhang et al., IEEE TGRS 60, 2022): attentive differences at high resolution, details as in the authors' code.

    classes: of every pixel. shared: channels at the end that both dates see. widths: channels of every branch, from the finest, which
    has the picture's size; each other has half the size of the one before. blocks: residual blocks of every branch in every stage.
    hidden: channels from which pixels are weighed. Both dates are also read side by side, so their order matters. Group and instance
    norms, where the authors have batch norms; residual blocks of the first stage have norms of their own on the way past, in their
    code the branch's.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        shared: NonNegativeInt = 0,
        widths: tuple[PositiveInt, ...] = (32, 64, 128, 256),
        blocks: PositiveInt = 4,
        hidden: PositiveInt = 512,
    ) -> None:
        self.classes, self.shared, self.widths, self.blocks, self.hidden = classes, shared, widths, blocks, hidden

    def build(self, inputs: Sample) -> ADHRCDNet:
        """inputs: what both dates look like together. TilthError for what is no picture, too small a one, not two dates, or a single
        branch."""
        if len(self.widths) < 2:
            raise TilthError("branches side by side are two or more", where=_WHERE)
        config = ADHRConfig(
            inputs.channels, self.widths, inputs.mean, inputs.std, blocks=self.blocks, hidden=self.hidden, shared=self.shared,
            num_labels=self.classes,
        )  # fmt: skip
        checked_size(inputs.size, config.smallest, _WHERE, _HINT)
        checked_dates(inputs, self.shared, "backbone.adhr_cd_net")
        return ADHRCDNet(config)


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(ADHRConfig.model_type, ADHRConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ADHRConfig, ADHRCDNet, exist_ok=True)
