"""Diagonal Fisher information of linear weights, and how much more a weight matters to one set than to another.

Notable: each weight's gradient is squared, added up and dropped as soon as backward has made it, so the gradients of the whole
model never exist together; the sums may lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.contracts import Batch, Noise
from tilth.unlearn.likelihood import IGNORED, cross_entropy
from tilth.unlearn.pairs import PairedExamples

_EPSILON = 1e-5


def fisher(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batches: Iterable[Batch], *, offload: bool = False
) -> dict[str, Tensor]:
    """F[W] = sum over batches of (dL/dW)^2 * n / sum of n: float32, in the shape of each weight.

    L: mean cross entropy of the batch's n answer tokens. With batches of one example this is the empirical Fisher information,
    per sample; with larger ones gradients of different signs cancel before they are squared. offload: sums lie on the CPU.
    """
    sums: dict[str, Tensor] = {}
    total, count = 0, 0

    def keep(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        square = weight.grad.float().square() * count
        weight.grad = None
        sums[name] = sums[name] + square.to(sums[name].device) if name in sums else square.cpu() if offload else square

    with evaluating(model) as device, torch.enable_grad(), only_trainable(model, weights.values()):
        for weight in weights.values():
            weight.grad = None
        handles = [
            weight.register_post_accumulate_grad_hook(lambda weight, name=name: keep(name, weight))  # type: ignore[misc]
            for name, weight in weights.items()
        ]
        try:
            for batch in batches:
                count = int((batch.labels[:, 1:] != IGNORED).sum()) if batch.labels.ndim > 1 else len(batch.labels)
                total += count
                cross_entropy(model, batch.to(device)).backward()
        finally:
            for handle in handles:
                handle.remove()
    return {name: value / max(total, 1) for name, value in sums.items()}


def row_weights(forget: Tensor, retain: Tensor, *, transposed: bool = False) -> Tensor:
    """w_i = sqrt(sum over inputs j of F_forget[i, j] / (F_retain[i, j] + 1e-5)), one per output i: (out,).

    transposed: the weights lie as (in, out), as in GPT-2.
    """
    return (forget / (retain + _EPSILON)).sum(0 if transposed else 1).sqrt()


def one_pass(examples: PairedExamples, size: int, seed: int, part: str) -> Iterator[Batch]:
    """All forget examples in order, or the retain examples that come with them, `size` at a time."""
    for start in range(0, len(examples), size):
        indices = np.arange(start, min(start + size, len(examples)))
        yield examples.batch(indices, Noise(seed, indices))[part]


@contextmanager
def only_trainable(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, `weights` have gradients and nothing else has."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
