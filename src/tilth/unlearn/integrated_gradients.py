"""Integrated gradients: which inputs a score comes from, such that the parts add up to the whole.

Notable: the path is sampled at midpoints, which do not weigh its ends twice, and closer together near the baseline, where a
network that normalises its input turns over all at once when the baseline is zero; in a language model the embeddings are exchanged by a
hook on whatever module makes them, so any causal LM runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tilth.contracts import Batch
from tilth.unlearn.likelihood import IGNORED, answer_log_probability


def integrated_gradients(score: Callable[[Tensor], Tensor], inputs: Tensor, baseline: Tensor, points: int) -> Tensor:
    """(x - b) * mean over m of 2 t_m grad score(b + t_m^2 (x - b)), t_m = (m - 1/2) / points   (arXiv 1703.01365, eq. 3)

    The paper's integral over a, with a = t^2: deviates from its evenly spaced sum, which for RMSNorm and a zero baseline misses
    most of what happens in the first few thousandths of the path.

    inputs, baseline: the same shape, which the result has. score: inputs -> a scalar. The result adds up to
    score(inputs) - score(baseline), up to an error that falls with points squared, and exactly for a linear score.
    """
    way, total = inputs - baseline, torch.zeros_like(inputs)
    for point in range(points):
        step = (point + 0.5) / points
        at = (baseline + step**2 * way).detach().requires_grad_()
        with torch.enable_grad():
            total += 2 * step * torch.autograd.grad(score(at), at)[0]
    return way * total / points


def answer_attributions(model: Any, batch: Batch, points: int = 32) -> Tensor:
    """How much each answer token's embedding adds to log p(answer | prompt), in nats: (batch, tokens), 0 outside answers.

    batch: input_ids, labels (batch, tokens), -100 outside the answer. Baseline: zero embeddings on the answer, the prompt as
    it is (arXiv 2405.15662, code). The answers' likelihoods do not depend on each other, so one gradient serves a batch.
    """
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        embedded = embedding(batch.input_ids)
    answer = (batch.labels != IGNORED).unsqueeze(-1)

    def score(embeddings: Tensor) -> Tensor:
        with _embedded_as(embedding, embeddings):
            return answer_log_probability(model, batch).sum()

    parts = integrated_gradients(score, embedded, torch.where(answer, 0.0, embedded), points)
    return parts.sum(-1).masked_fill(~answer[..., 0], 0.0)


@contextmanager
def _embedded_as(embedding: Any, values: Tensor) -> Iterator[None]:
    """Within, the embedding gives `values` whatever it is asked."""
    handle = embedding.register_forward_hook(lambda *_: values)
    try:
        yield
    finally:
        handle.remove()
