"""Patches of one kind of input as tokens with their positions.

Notable: an embedding is a matrix product on patches, so hidden ones are never embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tilth.backbones.positions import coordinates, interpolated, sincos
from tilth.batches.patches.masks import pick
from tilth.batches.patches.patchify import grid_of, patchify
from tilth.errors import TilthError


class PatchEmbedding(nn.Module):
    """Patches of one kind of input as tokens with their positions: groups of channels one after another, each in raster order.

    Positions of several groups are two tables side by side: three quarters of the width for the place, the rest for the group
    (SatMAE, arXiv 2207.08051, section 3.3).
    """

    mean: Tensor
    std: Tensor
    undecayed = ("table",)

    def __init__(self, given: dict[str, Any], width: int, position: str) -> None:
        super().__init__()
        self.channels, self.size, self.patch = int(given["channels"]), tuple(given["size"]), tuple(given["patch"])
        self.grid = grid_of(self.size, self.patch)
        self.groups = [list(group) for group in given.get("groups") or [range(self.channels)]]
        self.width, self.position = width, position
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = torch.tensor(given.get(name) or [default] * self.channels, dtype=torch.float32)
            self.register_buffer(name, values.reshape(-1, *[1] * len(self.size)))
        self.projections = nn.ModuleList(nn.Linear(len(group) * prod(self.patch), width) for group in self.groups)
        if position == "learned":
            self.table = nn.Parameter(torch.zeros(1, prod(self.grid), width))

    def standardised(self, values: Tensor) -> Tensor:
        """(values - mean) / std of each channel, in float32."""
        return (values.float() - self.mean) / self.std

    def forward(
        self, values: Tensor, kept: Tensor | None = None, hidden: Tensor | None = None, fill: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `PatchEncoder.forward`; values standardised."""
        grid = grid_of(values.shape[2:], self.patch)
        if len(self.groups) == 1:
            [group] = self.groups
            patches = patchify(values if group == list(range(self.channels)) else values[:, group], self.patch)
            tokens = self.projections[0](pick(patches, kept) if kept is not None else patches)
        else:
            parts = zip(self.groups, self.projections, strict=True)
            tokens = torch.cat([project(patchify(values[:, group], self.patch)) for group, project in parts], 1)
            tokens = pick(tokens, kept) if kept is not None else tokens
        if hidden is not None and fill is not None:
            tokens = torch.where(hidden[:, :, None], fill.to(tokens.dtype), tokens)
        positions = self.positions(grid, scale)
        if positions is None:
            return tokens
        return tokens + (pick(positions, kept) if kept is not None else positions)

    def positions(self, grid: Sequence[int], scale: Tensor | None = None) -> Tensor | None:
        """(1 or batch, tokens, width). scale: of each example's coordinates (batch,), see `PatchEncoder.forward`."""
        if self.position not in ("sincos", "learned"):
            return None
        device = self.mean.device
        aside = self.width // 4 if len(self.groups) > 1 else 0
        if self.position == "learned":
            places = interpolated(self.table, self.grid, grid)
        else:
            at = coordinates(grid, self.grid).to(device)[None]
            places = sincos(at if scale is None else at * scale[:, None, None], self.width - aside)
        if not aside:
            return places
        if self.position == "learned":
            raise TilthError("groups of channels go with sine-cosine positions", where="position")
        named = sincos(torch.arange(len(self.groups), dtype=torch.float32, device=device)[:, None], aside)
        count = places.shape[1]
        repeated = places.repeat(1, len(self.groups), 1)
        return torch.cat([repeated, named.repeat_interleave(count, 0).expand(len(repeated), -1, -1)], -1)
