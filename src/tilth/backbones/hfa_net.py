"""HFA-Net: a siamese UNet whose every convolution reads a map attended in space, then enriched with its own edges."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.deeplab_v3_plus import Convolved
from tilth.backbones.dense_heads import resized
from tilth.backbones.stage_checks import checked_size
from tilth.backbones.standardise import Standardise
from tilth.backbones.two_dates import channels_of_a_date, checked_dates, two_dates
from tilth.backbones.unet import Contracting, DoubleConvolution, Expanding, UNetConfig
from tilth.contracts import Backbone, Sample, method
from tilth.registry import NonNegativeInt, PositiveInt

BOOST = 0.5
_WHERE, _HINT = "backbone.hfa_net.widths", "Take larger pictures, or fewer levels."


class HFANetConfig(UNetConfig):
    """As `UNetConfig`, of all channels together; shared as in `hfa_net`."""

    model_type = "tilth_hfa_net"

    def __init__(self, *given: object, shared: int = 0, **others: object) -> None:
        super().__init__(*given, **others)  # type: ignore[arg-type]
        self.shared = shared

    @property
    def smallest(self) -> int:
        """Pixels that a picture needs along each axis: attention halves the coarsest map twice more."""
        return int(4 * 2 ** (len(self.widths) - 1))


class HighFrequency(nn.Module):
    """What a 3 x 3 binomial filter leaves of every channel, and the mean magnitude of its slope over directions 45 degrees apart.

    The kernels (isotropic Sobel) are fixed. The authors add up signed responses of eight directions, of which opposite ones cancel, so
    that their filter gives 0; magnitudes are the same for opposite directions, and four are enough. Beyond its border a map goes on as
    it is there: of a constant one the slope is 0 everywhere.
    """

    smoothing: Tensor
    slopes: Tensor

    def __init__(self) -> None:
        super().__init__()
        r = sqrt(2)
        straight = torch.tensor([[1, r, 1], [0, 0, 0], [-1, -r, -1]], device="cpu")
        slanted = torch.tensor([[0, 1, r], [-1, 0, 1], [-r, -1, 0]], device="cpu")
        once = torch.tensor([1.0, 2.0, 1.0], device="cpu") / 4
        self.register_buffer("smoothing", once.outer(once)[None])
        self.register_buffer("slopes", torch.stack([straight, slanted, straight.rot90(), slanted.rot90()]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channels, height, width) -> the smoothed map and its slopes, of the same shape."""
        smooth = filtered(x, self.smoothing).flatten(1, 2)
        return smooth, filtered(smooth, self.slopes).abs().mean(2)


def filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """(batch, channels, height, width) by each of the kernels (n, 3, 3) -> (batch, channels, n, height, width)."""
    channels = x.shape[1]
    beyond = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(beyond, kernels.repeat(channels, 1, 1)[:, None], groups=channels).unflatten(1, (channels, len(kernels)))


class SpatialAttention(nn.Module):
    """x + x * mask, the mask (batch, 1, height, width) between 0 and 1 by a small UNet of half, a quarter ... of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        down1, down2, down3, up2, up1, out = (max(1, width // 2**n) for n in range(1, 7))
        self.contracting = Contracting(width, [down1, down2, down3])
        self.expanding = Expanding([up1, up2, down3], [down1, down2])
        self.mask = nn.Sequential(
            Convolved(up1, out, 1), nn.Conv2d(out, 1, 1, bias=False), nn.GroupNorm(1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        *skips, coarse = self.contracting(x)
        return x + x * self.mask(self.expanding(coarse, skips))  # type: ignore[no-any-return]


class HighFrequencyEnhancement(nn.Module):
    """x + x * (a weight between 0 and 1 for each channel, of the means over pixels), and the slopes of x, joined by a 1 x 1
    convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 2)
        self.weights = nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Sigmoid())
        self.filter = HighFrequency()
        self.joined = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        weighed = x + x * self.weights(x.mean((2, 3), keepdim=True))
        return self.joined(torch.cat([weighed, self.filter(x)[1]], 1))  # type: ignore[no-any-return]


class HighFrequencyAttention(nn.Sequential):
    """HFAB: attention in space, then enhancement of high frequencies. The map keeps its shape."""

    def __init__(self, width: int) -> None:
        super().__init__(SpatialAttention(width), HighFrequencyEnhancement(width))


class HFANet(PreTrainedModel):
    """See `hfa_net`."""

    config_class = HFANetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: HFANetConfig) -> None:
        super().__init__(config)
        widths, half = config.widths, max(1, config.widths[0] // 2)
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.filter = HighFrequency()
        self.entry = nn.Conv2d(channels_of_a_date(config.num_channels, config.shared), widths[0], 1)
        self.down = nn.ModuleList(
            nn.Sequential(
                HighFrequencyAttention(source), Convolved(source, width, 3), HighFrequencyAttention(width), Convolved(width, width, 3)
            )
            for source, width in zip([widths[0], *widths[:-1]], widths, strict=True)
        )  # fmt: skip
        self.fused = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths)
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.narrowed = nn.ModuleList(nn.Conv2d(below, width, 1) for below, width in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(
                Convolved(2 * width, width, 3), HighFrequencyAttention(width), Convolved(width, width, 3), HighFrequencyAttention(width)
            )
            for _, width in pairs
        )  # fmt: skip
        self.head = nn.Sequential(DoubleConvolution(widths[0], half), nn.Conv2d(half, int(config.num_labels or 2), 1))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels of the first date, of the second, shared ones; height, width) -> logits of every pixel.

        TilthError for pictures that are too small for the levels.
        """
        checked_size(pixel_values.shape[2:], self.config.smallest, _WHERE, _HINT)
        maps = self.maps(torch.cat(two_dates(self.standardise(pixel_values), self.config.shared)))
        *skips, x = (fuse(torch.cat(both.chunk(2), 1)) for fuse, both in zip(self.fused, maps, strict=True))
        for narrow, join, skip in zip(self.narrowed, self.up, reversed(skips), strict=True):
            x = join(torch.cat([resized(narrow(x), skip.shape[2:]), skip], 1))
        return SemanticSegmenterOutput(logits=self.head(x))

    def maps(self, date: Tensor) -> list[Tensor]:
        """A date's standardised channels -> the map of every level (batch, width, height / 2^level, width / 2^level)."""
        smooth, slopes = self.filter(date)
        x = self.entry(smooth + BOOST * slopes)
        found: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if found else x)
            found.append(x)
        return found


@method("backbone", "hfa_net", systems=[6])
class HighFrequencyAttentionNet(Backbone):
    """HFA-Net (doi 10.1016/j.patcog.2022.108717): one encoder for both dates that attends to high frequencies.

    Maps of every level are fused by a 1 x 1 convolution of both dates' maps, so the order of dates matters. Details are those of
    the authors' code, but where said here.
    classes: of every pixel. shared: channels at the end that both dates see. widths: channels of every level, from the finest. Group
    norms and ReLUs, where the authors have batch norms and PReLUs; channels are filtered each by itself, in their code as a sum; the
    attention goes up by 2 x 2 transposed convolutions, theirs by 3 x 3 ones; slopes are magnitudes (`HighFrequency`).
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        shared: NonNegativeInt = 0,
        widths: tuple[PositiveInt, ...] = (64, 128, 256, 512, 1024),
    ) -> None:
        self.classes, self.shared, self.widths = classes, shared, widths

    def build(self, inputs: Sample) -> HFANet:
        """inputs: what both dates look like together. TilthError for what is no picture, too small a one, or not two dates."""
        config = HFANetConfig(inputs.channels, self.widths, inputs.mean, inputs.std, shared=self.shared, num_labels=self.classes)
        checked_size(inputs.size, config.smallest, _WHERE, _HINT)
        checked_dates(inputs, self.shared, "backbone.hfa_net")
        return HFANet(config)


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(HFANetConfig.model_type, HFANetConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(HFANetConfig, HFANet, exist_ok=True)
