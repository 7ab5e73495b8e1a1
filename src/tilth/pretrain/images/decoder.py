"""The decoder of masked autoencoders: what was seen and a token for every hidden patch, through a few blocks.

Notable: hidden patches stand behind the seen ones instead of between them, since attention does not mind the order; the output
layer runs at hidden patches alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import attention_block, initialise
from tilth.batches.patches.masks import Mask, pick


class MaskedDecoder(nn.Module):
    """Predictions for hidden patches from the encoder's tokens of the seen ones (MAE, arXiv 2111.06377, section 3).

    source: the encoder's width; out: numbers predicted for a patch. positions: what is added to every patch, given at each call
    because it depends on the grid.
    """

    def __init__(self, source: int, out: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(source, width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(attention_block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out)
        self.apply(initialise)
        nn.init.normal_(self.token, std=0.02)

    def begin(self, seen: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """What the first block sees: (batch, seen + hidden, width). positions: (1 or batch, tokens, width)."""
        known = self.project(seen) + pick(positions, mask.kept)
        return torch.cat([known, self.token + pick(positions, mask.hidden)], 1)

    def end(self, tokens: Tensor, mask: Mask) -> Tensor:
        """Predictions (batch, hidden, out)."""
        return self.head(self.norm(tokens[:, -mask.hidden.shape[1] :]))  # type: ignore[no-any-return]

    def forward(self, seen: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """seen (batch, n, source) -> (batch, hidden, out)."""
        tokens = self.begin(seen, mask, positions)
        for block in self.blocks:
            tokens = block(tokens)
        return self.end(tokens, mask)
