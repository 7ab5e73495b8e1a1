"""The multi-scale head of SatMAE++: a rebuilt picture brought to twice its size, and again, by small convolutions.

Notable: each block hands its features on and gives a picture of them, so any number of scales is a longer chain; nothing here
outlives pre-training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of (batch, channels, height, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Residual(nn.Module):
    """x + 0.5 * conv(relu(conv(x))), both 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.second(F.relu(self.first(x)))  # type: ignore[no-any-return]


class UpsampleBlock(nn.Module):
    """Features (batch, width, height, width) at twice the size, and a picture of `channels` from them (arXiv 2403.05419, section 3.2)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.enlarged_norm, self.residual, self.norm = ChannelNorm(width), Residual(width), ChannelNorm(width)
        self.picture = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.leaky_relu(self.enlarged_norm(self.enlarge(x)), 0.01)
        x = self.norm(self.residual(x))
        return x, self.picture(x)


class Upsampler(nn.Module):
    """Pictures (batch, channels, height, width) at 2, 4, ... 2^scales times their size, the smallest first.

    Features are four times as wide as the picture has channels. Convolutions start Xavier uniform, transposed ones as PyTorch
    starts them, as in the authors' code.
    """

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__()
        width = 4 * channels
        self.widen, self.norm = nn.Conv2d(channels, width, 1), ChannelNorm(width)
        self.blocks = nn.ModuleList(UpsampleBlock(width, channels) for _ in range(scales))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, picture: Tensor) -> list[Tensor]:
        # Channels last: what the norms work along then lies together.
        picture = picture.contiguous(memory_format=torch.channels_last)
        x, pictures = self.norm(F.gelu(self.widen(picture))), []
        for block in self.blocks:
            x, finer = block(x)
            pictures.append(finer)
        return pictures


def pyramid(pictures: Tensor, scales: int) -> list[Tensor]:
    """Pictures at 1/2^scales, ..., 1/2 and all of their size: means of 2x2 pixels, which is what halving bilinearly gives.

    Sides must be multiples of 2^scales.
    """
    levels = [pictures]
    for _ in range(scales):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels[::-1]
