"""Attention within windows of a Swin transformer, and where its position bias comes from: continuous and log-spaced, continuous and
linear, or a table.

Notable: transformers' own attention with its names of weights, so that its models and ours exchange weights; the three kinds
differ in where the bias comes from and in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

HOTTEST = math.log(100.0)  # of theta: a temperature of 1/100


class WindowAttention(Swinv2SelfAttention):
    """softmax(cos(q, k) * exp(min(theta, ln 100)) + 16 sigmoid(MLP(coordinates))) v   (arXiv 2111.09883, eq. 2 to 4)

    window, trained: sides of the window, and of the one the bias was trained in (None: the same). With config.block 'v1' the
    logits are q k^T / sqrt(d) (arXiv 2103.14030). As in the authors' code and unlike the paper's text: offsets are scaled so that
    those of the trained window end at 8, log2(|u| + 1) is divided by log2 8, and the table goes through 16 sigmoid; keys have no bias.

    Put right here: transformers 5.23 adds the mask of -100 between shifted regions twice, the authors' code once, and neither holds
    against a theta near ln 100, so these pairs are left out altogether; a trained window of 1 would make the coordinates NaN.
    Logits and weights are float32, under autocast too.
    """

    def __init__(self, config: Any, width: int, heads: int, window: Sequence[int], trained: Sequence[int] | None = None) -> None:
        super().__init__(config, width, heads, tuple(window), tuple(trained or window))
        self.cosine = config.block == "v2"
        if not self.cosine:
            self.logit_scale = None  # type: ignore[assignment]

    @staticmethod
    def spaced(share: Tensor) -> Tensor:
        """Coordinates of offsets given as shares of the trained window's largest: log-spaced, 1.06 at its end."""
        return share.sign() * (8 * share.abs() + 1).log2() / 3

    def create_coords_table_and_index(self) -> tuple[Tensor, Tensor]:
        """Coordinates (1, 2 Mh - 1, 2 Mw - 1, 2) of all offsets, and which of these belongs to each pair of a window's tokens."""
        high, wide = self.window_size
        axes = [
            torch.arange(1 - side, side).float() / max(trained - 1, 1)
            for side, trained in zip(self.window_size, self.pretrained_window_size, strict=True)
        ]
        coordinates = self.spaced(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))[None]
        at = torch.arange(high * wide)
        rows, columns = at // wide, at % wide
        down, across = rows[:, None] - rows + high - 1, columns[:, None] - columns + wide - 1
        return coordinates, (down * (2 * wide - 1) + across).flatten()

    def table(self) -> Tensor:
        """((2 Mh - 1)(2 Mw - 1), heads), before the sigmoid."""
        return self.continuous_position_bias_mlp(self.relative_coords_table.to(self.query.weight.dtype)).flatten(0, 2)  # type: ignore[no-any-return]

    def bias(self) -> Tensor:
        """(heads, Mh Mw, Mh Mw)."""
        table = 16 * self.table().float().sigmoid()
        tokens = math.prod(self.window_size)
        return table.index_select(0, self.relative_position_index).T.unflatten(1, (tokens, tokens))  # type: ignore[no-any-return]

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Without position bias: (windows, heads, tokens, tokens) of queries and keys (windows, heads, tokens, channels)."""
        if not self.cosine:
            return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scale = self.logit_scale.float().clamp(max=HOTTEST).exp()
        return F.normalize(q, dim=-1) * scale @ F.normalize(k, dim=-1).transpose(-2, -1)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
    ) -> tuple[Tensor, ...]:
        """hidden_states (windows, tokens, width). attention_mask, unlike transformers': bool (n, tokens, tokens), the pairs that are
        left out, for windows in turn."""
        q, k, v = (
            project(hidden_states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        with torch.autocast(q.device.type, enabled=False):
            logits = self.logits(q.float(), k.float()) + self.bias()
            if attention_mask is not None:
                split = logits.unflatten(0, (-1, len(attention_mask)))
                logits = split.masked_fill(attention_mask[:, None], -math.inf).flatten(0, 1)
            weights = logits.softmax(-1)
        mixed = (self.dropout(weights.to(v.dtype)) @ v).transpose(1, 2).flatten(2)
        return (mixed, weights) if output_attentions else (mixed,)

    def reset(self) -> None:
        """theta to ln 10; coordinates and indices, which are never saved, to what they must be."""
        if self.logit_scale is not None:
            init.constant_(self.logit_scale, math.log(10))
        coordinates, index = self.create_coords_table_and_index()
        init.copy_(self.relative_coords_table, coordinates)
        init.copy_(self.relative_position_index, index)

    @property
    def undecayed(self) -> list[str]:
        """Names of parameters that are not decayed, as in the authors' code; vectors never are."""
        ours = ("logit_scale", "continuous_position_bias", "relative")
        return [name for name, _ in self.named_parameters() if name.startswith(ours)]


class LinearAttention(WindowAttention):
    """The same with coordinates that are the shares themselves: 1 at the end of the trained window."""

    @staticmethod
    def spaced(share: Tensor) -> Tensor:
        return share


class TableAttention(WindowAttention):
    """The same with a learned number for every offset and head; for another window the table is interpolated (arXiv 2103.14030)."""

    def __init__(self, config: Any, width: int, heads: int, window: Sequence[int], trained: Sequence[int] | None = None) -> None:
        super().__init__(config, width, heads, window, trained)
        del self.continuous_position_bias_mlp
        self.relative_position_bias_table = nn.Parameter(torch.zeros(math.prod(2 * side - 1 for side in window), heads))

    def table(self) -> Tensor:
        """((2 Mh - 1)(2 Mw - 1), heads), before the sigmoid."""
        return self.relative_position_bias_table

    def reset(self) -> None:
        """As `WindowAttention.reset`, and the table is drawn anew."""
        super().reset()
        init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def stretched(self, window: Sequence[int]) -> Tensor:
        """The table brought to another window, bicubically."""
        old, new = ([2 * side - 1 for side in sides] for sides in (self.window_size, window))
        spread = self.relative_position_bias_table.detach().T.unflatten(1, old)[None]
        return F.interpolate(spread, size=new, mode="bicubic", align_corners=False)[0].flatten(1).T.contiguous()


POSITIONS: dict[str, type[WindowAttention]] = {"log": WindowAttention, "linear": LinearAttention, "table": TableAttention}
