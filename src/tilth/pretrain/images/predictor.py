"""The narrow transformer of joint-embedding prediction: from tokens that were seen to those at other positions.

Notable: a query is a learned token, the same for all, and a position, so what is asked for is where and never what; queries that only
make lists equally long are hidden from everything else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import attention_block, initialise


class Predictor(nn.Module):
    """I-JEPA's predictor (arXiv 2301.08243, section 3). source: the encoder's width, in which predictions are; width: its own."""

    def __init__(self, source: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(source, width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(attention_block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, source)
        self.apply(initialise)
        nn.init.normal_(self.token, std=0.02)

    def forward(self, seen: Tensor, places: Tensor, queries: Tensor, valid: Tensor | None = None) -> Tensor:
        """Predictions (batch, m, source) at `queries`, from tokens `seen` (batch, n, source) at `places`.

        places (batch, n, width), queries (batch, m, width): positions, as added to tokens. valid (batch, m) bool: queries that
        count; the others' predictions mean nothing.
        """
        tokens = torch.cat([self.project(seen) + places, self.token + queries], 1)
        count = seen.shape[1]
        attended = () if valid is None else (torch.cat([valid.new_ones(len(seen), count), valid], 1)[:, None, None],)
        for block in self.blocks:
            tokens = block(tokens, *attended)
        return self.head(self.norm(tokens[:, count:]))  # type: ignore[no-any-return]
