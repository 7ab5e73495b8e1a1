"""How much there is to see in each patch: the Shannon entropy of its grey levels."""

from __future__ import annotations

import torch
from torch import Tensor

from tilth.batches import draws
from tilth.batches.patches.masks import Mask, ranked


@torch.no_grad()
def patch_entropy(patches: Tensor, levels: int = 256) -> Tensor:
    """Entropy in nats of each patch's histogram, (batch, tokens), of grey patches (batch, tokens, n).

    The histogram has `levels` equal bins between an example's least and greatest value.
    """
    low, high = patches.flatten(1).aminmax(dim=1)
    span = (high - low).clamp(min=torch.finfo(patches.dtype).tiny)
    level = ((patches - low[:, None, None]) / span[:, None, None] * levels).long().clamp(max=levels - 1)
    counts = torch.zeros(*patches.shape[:2], levels, device=patches.device).scatter_add(
        2, level, torch.ones_like(patches).float()
    )
    return torch.special.entr(counts / patches.shape[2]).sum(2)


def by_entropy(keys: Tensor, entropy: Tensor, hidden: int, name: str = "mask") -> Mask:
    """`hidden` patches of each example, those that show much the more often: the greatest of u * e, u uniform, e the entropy
    (examples, tokens) scaled to [0, 1] within the example (Uni4Eye++, the successor of arXiv 2203.04614).

    Where all patches show equally much the choice is a random one, that of `masks.random`.
    """
    low, high = entropy.aminmax(dim=1, keepdim=True)
    share = torch.where(high > low, (entropy - low) / (high - low).clamp(min=1e-12), 1.0)
    return ranked(draws.uniform(keys, name, entropy.shape[1]) * share, hidden)
