"""Where patches lie relative to each other, told to attention by the query: what a token looks for depends on how far and which way.

Notable: offsets fall into a few buckets, single near by and wider far away, so the same table serves any grid; nothing knows where a
token is, so a window of a picture means the same wherever it is cut.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import Attention

# Offsets up to ALPHA have buckets of their own, those from GAMMA on share the last, BETA is the greatest index (before truncation).
ALPHA = 1.9
BETA = 2 * ALPHA
GAMMA = 8 * ALPHA


def piecewise(offsets: Tensor) -> Tensor:
    """Index -3 ... 3 of each offset: int64 (iRPE, arXiv 2107.14222, with the values of its released code).

    round(d) for |d| <= alpha, else sign(d) min(beta, round(alpha + ln(|d| / alpha) / ln(gamma / alpha) (beta - alpha))), towards 0.
    """
    size = offsets.abs().clamp(min=ALPHA)
    far = (ALPHA + (size / ALPHA).log() / math.log(GAMMA / ALPHA) * (BETA - ALPHA)).round().clamp(max=BETA).trunc()
    return torch.where(offsets.abs() <= ALPHA, offsets.round(), offsets.sign() * far).long()


def bucket_count(axes: int) -> int:
    """One for every combination of the axes' indices, and one for pairs with a token that has no place."""
    return (2 * int(BETA) + 1) ** axes + 1


def buckets(places: Tensor, class_token: bool = False) -> Tensor:
    """Of every pair of tokens, the combination ("product") of its offsets' indices: int64 (batch, 1, tokens, tokens).

    places (batch, n, axes): coordinates in patches. class_token: one more token comes first; pairs with it share the last bucket.
    """
    axes, reach = places.shape[-1], int(BETA)
    index = piecewise(places[:, :, None] - places[:, None]) + reach
    weights = torch.tensor([(2 * reach + 1) ** (axes - 1 - axis) for axis in range(axes)], device=places.device)
    found = (index * weights).sum(-1)
    if class_token:
        found = nn.functional.pad(found, (1, 0, 1, 0), value=bucket_count(axes) - 1)
    return found[:, None]


class RelativeAttention(Attention):
    """softmax((q k^T + q r^T) / sqrt(d)) v, r of each pair the vector of its bucket, the same for all heads (contextual iRPE on keys,
    arXiv 2107.14222). Given the `buckets` of its tokens; without weights in the table, which starts at 0, plain attention."""

    undecayed = ("table",)

    def __init__(self, width: int, heads: int, axes: int) -> None:
        super().__init__(width, heads)
        self.table = nn.Parameter(torch.zeros(bucket_count(axes), width // heads))

    def bias(self, q: Tensor, given: Tensor | None) -> Tensor:
        """(batch, heads, tokens, tokens), for queries (batch, heads, tokens, d)."""
        assert given is not None
        scores = q @ self.table.mT * q.shape[-1] ** -0.5
        return scores.gather(-1, given.expand(*q.shape[:2], -1, -1))
