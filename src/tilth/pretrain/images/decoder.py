"""The decoder of masked autoencoders: what was seen and a token for every hidden patch, through a few blocks.

Notable: hidden patches stand behind the seen ones instead of between them, since attention does not mind the order; the output
layer, and of the last block all but keys and values, runs at hidden patches alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tilth.backbones.blocks import attention_block, initialise
from tilth.backbones.patches import PatchEncoder
from tilth.batches.patches.masks import Mask, pick
from tilth.batches.patches.patchify import unpatchify


class MaskedDecoder(nn.Module):
    """Predictions for hidden patches from the encoder's tokens of the seen ones (MAE, arXiv 2111.06377, section 3).

    source: the encoder's width; out: numbers predicted for a patch. positions: what is added to every patch, given at each call
    because it depends on the grid.
    """

    undecayed = ("token",)

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
        """Predictions (batch, hidden, out) from the tokens of all patches, or of the hidden ones."""
        return self.head(self.norm(tokens[:, -mask.hidden.shape[1] :]))  # type: ignore[no-any-return]

    def forward(self, seen: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """seen (batch, n, source) -> (batch, hidden, out)."""
        tokens = self.begin(seen, mask, positions)
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens, tail=mask.hidden.shape[1] if number == len(self.blocks) else None)
        return self.end(tokens, mask)


def rebuilt(model: PatchEncoder, patches: Tensor, mask: Mask, predicted: Tensor) -> list[list[Tensor]]:
    """For the report, rows of: a picture, what is seen of it, and it with hidden patches as predicted, in natural scale.

    patches (batch, tokens, n), predicted (batch, hidden, n): standardised, of the encoder's first kind of input.
    """
    embedding = next(iter(model.embeddings.values()))
    place = mask.hidden[:, :, None].expand(-1, -1, patches.shape[-1])
    shown = (patches, patches.scatter(1, place, 0.0), patches.scatter(1, place, predicted.to(patches.dtype)))
    grid = embedding.grid  # type: ignore[union-attr]
    made = [unpatchify(part, grid, embedding.patch) * embedding.std + embedding.mean for part in shown]  # type: ignore[union-attr, arg-type, operator]
    return [list(row) for row in zip(*made, strict=True)]
