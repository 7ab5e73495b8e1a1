"""Balanced assignments: the Sinkhorn-Knopp algorithm on the scores of all processes' examples."""

from __future__ import annotations

import torch
from torch import Tensor

from tilth.training.across import count, gather


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, training: bool) -> Tensor:
    """Soft assignments (n, prototypes) from scores (n, prototypes): each example's sum to 1, each prototype gets alike.

    exp(scores / epsilon), rows and columns scaled in turns `iterations` times, examples last (SwAV, arXiv 2006.09882, section 3.1 and
    appendix A): prototypes sum to examples / prototypes over all processes, the better the more iterations. In logarithms and
    float32, so nothing overflows or vanishes at a small epsilon. training: whether all processes take part (`across.gather`).
    """
    logs = scores.float() / epsilon
    share = torch.log(logs.new_tensor(count(scores, training) / scores.shape[1]))
    for _ in range(iterations):
        each = gather(logs.logsumexp(0, keepdim=True), training)
        logs = logs - each.logsumexp(0) + share
        logs = logs.log_softmax(1)
    return logs.exp()
