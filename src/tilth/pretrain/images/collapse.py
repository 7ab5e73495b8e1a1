"""Signs of collapse while training, logged with the held-out loss: whether representations still tell examples apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def signs(objective: nn.Module, pooled: Tensor) -> dict[str, Tensor]:
    """Parts for a Loss: effective rank (Roy and Vetterli, EUSIPCO 2007) and uniformity (arXiv 2005.10242) of a batch's vectors.

    pooled (batch, width). Empty while training, where they would cost a decomposition at every step; NaN of a single row, which
    the loop leaves out of the mean.
    """
    if objective.training:
        return {}
    if len(pooled) < 2:
        return dict.fromkeys(("effective_rank", "uniformity"), pooled.new_full((), torch.nan, dtype=torch.float32))
    vectors = pooled.float()
    values = torch.linalg.svdvals(vectors - vectors.mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    unit = F.normalize(vectors, dim=1)
    return {
        "effective_rank": torch.special.entr(shares).sum().exp(),
        "uniformity": torch.pdist(unit).square().mul(-2).exp().mean().log(),
    }
