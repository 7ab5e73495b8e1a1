"""Arithmetic on logits: what an assistant knows is taken from what a model says, among the tokens it may plausibly say.

Notable: the assistant's logits are centred before those of implausible tokens are set to zero; else whatever constant they
carry would set the plausible tokens against the others, and an assistant that knows nothing would not be without effect.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plausible(logits: Tensor, share: float) -> Tensor:
    """K = {v : log p(v) >= min(max_v log p + log(share), the m-th largest log p)}, m = floor(share * V), at least 1: bool, as logits.

    arXiv 2406.08607, section 3. share = 1 keeps every token, the most likely one is always kept.
    """
    log_probability = logits.log_softmax(-1)
    most = max(1, math.floor(share * logits.shape[-1]))
    last = log_probability.topk(most, dim=-1).values[..., -1:]
    return log_probability >= torch.minimum(log_probability.amax(-1, keepdim=True) + math.log(share), last)


def combined(target: Tensor, assistant: Tensor, weight: float, *, share: float | None, centred: bool = True) -> Tensor:
    """target + weight * assistant, the assistant's logits 0 outside `plausible(target, share)`   (arXiv 2406.08607, section 3)

    target, assistant: logits (..., vocabulary). weight: below 0 takes away. share: None for no filter. centred: the assistant's
    mean over the vocabulary is subtracted first.
    """
    if centred:
        assistant = assistant - assistant.mean(-1, keepdim=True)
    if share is not None:
        assistant = assistant.where(plausible(target, share), 0.0)
    return target + weight * assistant
