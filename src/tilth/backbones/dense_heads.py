"""From tokens to classes of every pixel or voxel: a map of the tokens, brought to the size of the input.

Notable: all for one to three axes; who reads early layers too (`Unetr`) says so in `taps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.conv_stages import CONVOLUTIONS, ResidualBlock
from tilth.errors import TilthError

TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation along every axis; a map of that size stays as it is."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode=("linear", "bilinear", "trilinear")[len(size) - 1], align_corners=False)


class Pointwise(nn.Module):
    """The map brought to the input's size, then a linear map of every pixel, or one hidden layer of `hidden` with a ReLU.

    Heads (a) and (b) of arXiv 2311.12056. Interpolation and a linear map commute, so (a) interpolates classes, not features.
    """

    def __init__(self, width: int, classes: int, dims: int, hidden: int = 0) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims - 1]
        self.hidden = convolution(width, hidden, 1) if hidden else None
        self.classes = convolution(hidden or width, classes, 1)

    def forward(self, maps: Sequence[Tensor], values: Tensor) -> Tensor:
        """maps: that of the last layer alone; values: the input (batch, channels, *size)."""
        size = values.shape[2:]
        if self.hidden is None:
            return resized(self.classes(maps[-1]), size)
        return self.classes(F.relu(self.hidden(resized(maps[-1], size))))  # type: ignore[no-any-return]


class Transposed(nn.Sequential):
    """Head (c) of arXiv 2311.12056: three transposed convolutions (kernel 4, stride 2) to `widths` and the classes, ReLUs between
    them, and a doubling by repetition after the first: 16 times the map. What is not 16 times the map is interpolated."""

    def __init__(self, width: int, classes: int, dims: int, widths: tuple[int, int] = (128, 64)) -> None:
        up = TRANSPOSED[dims - 1]
        super().__init__(
            up(width, widths[0], 4, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), up(widths[0], widths[1], 4, 2, 1), nn.ReLU(),
            up(widths[1], classes, 4, 2, 1),
        )  # fmt: skip

    def forward(self, maps: Sequence[Tensor], values: Tensor) -> Tensor:  # type: ignore[override]
        """As `Pointwise`."""
        return resized(super().forward(maps[-1]), values.shape[2:])


class Unetr(nn.Module):
    """UNETR's decoder (arXiv 2103.10504, figure 1) on the maps of early layers and the last: with patches of 2^k pixels k - 1 maps
    of early layers are brought to 1/2, 1/4 ... of the input by transposed convolutions and joined on the way up; the input itself
    joins last.

    width: of tokens; feature: channels at full size, doubled at every level down. Residual blocks with instance norms (and plain
    ReLUs, where MONAI's are leaky).
    """

    def __init__(self, width: int, classes: int, dims: int, channels: int, patch: Sequence[int], feature: int = 16) -> None:
        super().__init__()
        levels = patch[0].bit_length() - 1
        if len(set(patch)) > 1 or 2**levels != patch[0] or not levels:
            raise TilthError(f"this head needs patches whose sides are one power of 2, not {list(patch)}", where="head")
        up = TRANSPOSED[dims - 1]
        widths = [feature * 2**level for level in range(levels)]
        self.taps = levels - 1
        self.stem = ResidualBlock(dims, channels, feature, 1)
        self.raised = nn.ModuleList()
        for level in range(1, levels):
            steps: list[nn.Module] = [up(width, widths[level], 2, 2)]
            for _ in range(levels - 1 - level):
                steps += [up(widths[level], widths[level], 2, 2), ResidualBlock(dims, widths[level], widths[level], 1)]
            self.raised.append(nn.Sequential(*steps))
        sources = [*widths[1:], width]
        self.up = nn.ModuleList(up(source, w, 2, 2) for source, w in zip(sources, widths, strict=True))
        self.joined = nn.ModuleList(ResidualBlock(dims, 2 * w, w, 1) for w in widths)
        self.classes = CONVOLUTIONS[dims - 1](feature, classes, 1)

    def forward(self, maps: Sequence[Tensor], values: Tensor) -> Tensor:
        """maps: those of the tapped layers, the earliest first, then of the last; values: the standardised input."""
        skips = [self.stem(values), *(raise_(map_) for raise_, map_ in zip(self.raised, maps[:-1], strict=True))]
        x = maps[-1]
        for up, join, skip in zip(reversed(self.up), reversed(self.joined), reversed(skips), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.classes(x)  # type: ignore[no-any-return]
