"""From views to the vectors that are compared: the encoder once for every size of view, and projection heads.

Notable: the encoders here have no batch norm, so views of one size go through them together; heads have, so what shares a head's
statistics is each method's own decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tilth.errors import TilthError
from tilth.training.across import BatchNorm


def projection(
    width: int, inner: int, out: int, *, layers: int = 2, norm: bool = True, last_norm: bool = False, bias: bool = False
) -> nn.Sequential:
    """Linear layers width -> inner -> ... -> out with ReLU between them, for rows (n, width).

    norm: a batch norm over all processes before each ReLU; last_norm: one at the end. bias: of the last layer. A layer before a
    batch norm has none, because the norm would take it away again.
    """
    made: list[nn.Module] = []
    for _ in range(layers - 1):
        made += [nn.Linear(width, inner, bias=not norm), *([BatchNorm(inner)] if norm else []), nn.ReLU()]
        width = inner
    made.append(nn.Linear(width, out, bias=bias and not last_norm))
    return nn.Sequential(*made, *([BatchNorm(out)] if last_norm else []))


def pooled(encoder: Callable[[Tensor], Any], views: Sequence[Tensor]) -> list[Tensor]:
    """`Features.pooled` (batch, width) of each view (batch, channels, *size); neighbours of one size are encoded together."""
    found: list[Tensor] = []
    for _, alike in groupby(views, lambda view: view.shape):
        group = list(alike)
        vectors: Tensor = encoder(torch.cat(group)).pooled
        found.extend(vectors.chunk(len(group)))
    return found


def one(views: Sequence[Tensor], name: str) -> Tensor:
    """The only view, for the objective `name`."""
    if len(views) != 1:
        raise TilthError(
            f"'{name}' learns from one view, but {len(views)} were made",
            where=f"pretrain.{name}.views",
            hint="Choose views that come alone, such as 'mae', 'volumes' or 'none'.",
        )
    return views[0]


def two(views: Sequence[Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Exactly two views, for the objective `name`."""
    if len(views) != 2:
        raise TilthError(
            f"'{name}' compares two views, but {len(views)} were made",
            where=f"pretrain.{name}.views",
            hint="Choose views that come in twos, such as 'simclr' or 'byol'.",
        )
    return views[0], views[1]
