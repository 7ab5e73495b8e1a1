"""A block of a Swin transformer: attention in windows of the map, every other time in windows shifted by half of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer

from tilth.backbones.swin_bias import POSITIONS
from tilth.errors import TilthError

if TYPE_CHECKING:
    from tilth.backbones.swin import SwinConfig


def tiled(sides: Sequence[int], window: Sequence[int]) -> None:
    """Raise TilthError where windows do not tile a map."""
    if any(side % edge for side, edge in zip(sides, window, strict=True)):
        shown = ["x".join(map(str, numbers)) for numbers in (window, sides)]
        raise TilthError(
            f"windows of {shown[0]} do not tile a map of {shown[1]} tokens",
            where="window",
            hint="Choose a size, a patch and a window with which every stage's map, half of the one before, is a multiple of the "
            "window or no larger; `resized` brings a model to another size and window.",
        )


class BranchNorm(nn.LayerNorm):
    """Starts at gain 0 and bias 0, so that the branch it ends adds nothing at first."""


class SwinBlock(Swinv2Layer):
    """x += norm(attention in windows of x); x += norm(mlp x); norms inside the sums with 'v1'.

    Unlike transformers', which has square windows and fills maps up with zeros that are attended to, windows have a side for each
    axis and must tile the map.
    """

    def __init__(
        self, config: SwinConfig, width: int, sides: Sequence[int], heads: int, *, stage: int, shifted: bool, drop_path: float
    ) -> None:
        super().__init__(config, width, sides, heads, drop_path)
        self.window, self.shifted, self.post = config.windows()[stage], shifted, config.block == "v2"
        self.attention.self = POSITIONS[config.position](config, width, heads, self.window, config.trained(stage))
        if self.post:
            self.layernorm_before, self.layernorm_after = (BranchNorm(width, eps=config.layer_norm_eps) for _ in range(2))

    def shift(self, sides: Sequence[int]) -> tuple[int, int]:
        """By how much windows are shifted along each axis: half a window, not at all where one window is all there is."""
        found = [edge // 2 if self.shifted and side > edge else 0 for side, edge in zip(sides, self.window, strict=True)]
        return found[0], found[1]

    def split(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) -> (batch * windows, tokens, channels)."""
        high, wide = self.window
        return x.unflatten(2, (-1, wide)).unflatten(1, (-1, high)).transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, windows: Tensor, sides: Sequence[int]) -> Tensor:
        """The inverse."""
        high, wide = self.window
        down, across = sides[0] // high, sides[1] // wide
        return windows.unflatten(1, (high, wide)).unflatten(0, (-1, down, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def excluded(self, sides: Sequence[int], device: torch.device) -> Tensor | None:
        """Pairs of tokens that share a shifted window and were not neighbours: bool (windows, tokens, tokens), None without any."""
        shift = self.shift(sides)
        if not any(shift):
            return None
        lines = [
            (torch.arange(side, device=device) >= side - by).long() if by else torch.zeros(side, dtype=torch.long, device=device)
            for side, by in zip(sides, shift, strict=True)
        ]
        regions = self.split((2 * lines[0][:, None] + lines[1])[None, :, :, None])[:, :, 0]
        return regions[:, :, None] != regions[:, None, :]

    def mixed(self, x: Tensor, sides: Sequence[int]) -> Tensor:
        """Attention alone: (batch, tokens, width), tokens in raster order of a map of these sides."""
        tiled(sides, self.window)
        shift = self.shift(sides)
        x = x.unflatten(1, tuple(sides))
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        windows = self.attention(self.split(x), self.excluded(sides, x.device))[0]
        x = self.join(windows, sides)
        if any(shift):
            x = x.roll(shift, (1, 2))
        return x.flatten(1, 2)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], output_attentions: bool | None = False
    ) -> tuple[Tensor, ...]:
        """hidden_states (batch, tokens, width), in raster order of a map of `input_dimensions` -> the same, alone in a tuple."""
        x = hidden_states
        if self.post:
            x = x + self.drop_path(self.layernorm_before(self.mixed(x, input_dimensions)))
            return (x + self.drop_path(self.layernorm_after(self.output(self.intermediate(x)))),)
        x = x + self.drop_path(self.mixed(self.layernorm_before(x), input_dimensions))
        return (x + self.drop_path(self.output(self.intermediate(self.layernorm_after(x)))),)
