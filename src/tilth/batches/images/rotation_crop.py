"""Adaptive rotation encoding: the square of a picture where one local pattern prevails is turned, in whole batches on their device.

Notable: every example has its own square of its own size and its own angle, and yet nothing loops over examples: candidates of one
size are pooled score maps, and turning is one sampling grid over the whole picture that is the identity outside the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tilth.batches.draws import uniform
from tilth.batches.patches.patchify import grid_of, patchify

SIZES = (1 / 2, 1 / 3, 1 / 6)  # 96, 64 and 32 of 192 pixels
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2))


@dataclass(frozen=True)
class Square:
    """top, left, side: int64 (batch,), in patches."""

    top: Tensor
    left: Tensor
    side: Tensor

    def where(self, grid: Sequence[int]) -> Tensor:
        """True at patches within it: bool (batch, patches)."""
        spans = []
        for begin, extent in zip((self.top, self.left), grid, strict=True):
            place = torch.arange(extent, device=begin.device) - begin[:, None]
            spans.append((place >= 0) & (place < self.side[:, None]))
        return (spans[0][:, :, None] & spans[1][:, None]).flatten(1)


@torch.no_grad()
def turned(
    pixels: Tensor, keys: Tensor, patch: Sequence[int], *, degrees: float = 45.0, sizes: Sequence[float] = SIZES
) -> tuple[Tensor, Tensor]:
    """Pictures with their square turned, a new tensor, and which patches lie in it, bool (batch, patches)   (arXiv 2503.10392).

    pixels: float32 (batch, channels, height, width). The angle is uniform [-degrees, degrees], drawn from keys (batch,). sizes: see
    `salient`. Of the turned square, what leaves it is cut off and its empty corners keep the picture's pixels, where the authors'
    code blackens them.
    """
    grid = grid_of(pixels.shape[2:], patch)
    square = salient(texture(pixels, patch), grid, sizes)
    angles = degrees * (2 * uniform(keys, "rotation") - 1)
    return turn(pixels, square, patch, angles), square.where(grid)


@torch.no_grad()
def texture(pixels: Tensor, patch: Sequence[int]) -> Tensor:
    """L2 norm of each patch's histogram of local binary patterns, as shares of its pixels: float32 (batch, patches), in (0, 1].

    A pattern is one bit for each of the 8 neighbours of a pixel that is at least as bright (Ojala et al. 1996), of the mean over
    channels; neighbours outside the picture repeat its edge. The norm is 1 where one pattern fills the patch (a flat one, for
    example) and least where patterns are mixed, as in noise.
    """
    grey = pixels.float().mean(1, keepdim=True)
    height, width = grey.shape[2:]
    around = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    codes = torch.zeros_like(grey, dtype=torch.uint8)
    for bit, (row, column) in enumerate(_NEIGHBOURS):
        codes |= (around[:, :, row : row + height, column : column + width] >= grey).to(torch.uint8) << bit
    each = patchify(codes, patch).sort(-1).values
    # The sum of squared counts without a histogram of 256 bins per patch: the i-th pixel of a run of equal codes adds 2i - 1.
    at = torch.arange(each.shape[-1], device=pixels.device).expand_as(each)
    begins = F.pad(each[..., 1:] != each[..., :-1], (1, 0), value=True)
    first = torch.where(begins, at, 0).cummax(-1).values
    return (2 * (at - first) + 1).sum(-1).float().sqrt() / each.shape[-1]


@torch.no_grad()
def salient(scores: Tensor, grid: Sequence[int], sizes: Sequence[float] = SIZES) -> Square:
    """The square of greatest total score among those that hold the patch of greatest score: scores (batch, patches).

    sizes: sides as shares of the shorter side of the picture, to the nearest whole patch, tried in turn: the first whose best
    square scores on average at least what the whole picture does, otherwise the last.
    """
    rows, columns = grid
    maps = scores.unflatten(1, (rows, columns))
    down, across = (scores.argmax(1) // columns)[:, None], (scores.argmax(1) % columns)[:, None]
    level = scores.mean(1) * (1 - 1e-6)  # equal means of equal scores may differ by rounding
    found: list[Tensor] = []
    accepted = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for size in sizes:
        side = min(max(1, round(size * min(grid))), rows, columns)
        means = F.avg_pool2d(maps[:, None], side, stride=1)[:, 0]
        tops, lefts = (torch.arange(extent, device=scores.device) for extent in means.shape[1:])
        holds_row, holds_column = (tops <= down) & (tops > down - side), (lefts <= across) & (lefts > across - side)
        means = means.masked_fill(~(holds_row[:, :, None] & holds_column[:, None]), -torch.inf)
        best, at = means.flatten(1).max(1)
        box = torch.stack([at // means.shape[2], at % means.shape[2], torch.full_like(at, side)])
        found.append(box if not found else torch.where(accepted, found[-1], box))
        accepted |= best >= level
    return Square(*found[-1])


@torch.no_grad()
def turn(pixels: Tensor, square: Square, patch: Sequence[int], degrees: Tensor) -> Tensor:
    """pixels (batch, channels, height, width) with each one's square turned anticlockwise by degrees (batch,), bilinear."""
    size = pixels.shape[2:]
    angle = torch.deg2rad(degrees.float())[:, None, None]
    steps = (torch.arange(extent, device=pixels.device, dtype=torch.float32) for extent in size)
    begins = [(one * side)[:, None, None].float() for one, side in zip((square.top, square.left), patch, strict=True)]
    lengths = [(square.side * side)[:, None, None].float() for side in patch]
    y, x = (
        place - begin - (length - 1) / 2
        for place, begin, length in zip(torch.meshgrid(*steps, indexing="ij"), begins, lengths, strict=True)
    )
    source = (angle.sin() * x + angle.cos() * y, angle.cos() * x - angle.sin() * y)
    covered = torch.ones((), dtype=torch.bool, device=pixels.device)
    places = []
    for here, there, begin, length, extent in zip((y, x), source, begins, lengths, size, strict=True):
        covered = covered & (here.abs() < length / 2) & (there.abs() < length / 2)
        within = there.clamp(-(length - 1) / 2, (length - 1) / 2)  # nothing from outside is blended in
        places.append((2 * (within + begin) + length) / extent - 1)
    sampled = F.grid_sample(pixels, torch.stack(places[::-1], -1), align_corners=False, padding_mode="border")
    return torch.where(covered[:, None], sampled, pixels)
