"""Cross entropy straight from hidden states, without ever holding all logits (as in arXiv 2411.09009, Liger).

Notable: logits of some rows at a time live in one buffer that stays in the cache; their gradient is known as soon as they
are (softmax minus one-hot), so the forward pass leaves the gradients of states and weights behind and the backward pass
only scales them. A compiled graph sees one opaque operator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
_LOGITS = {"cpu": 2**22, "other": 2**26}  # held at a time


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(hidden @ weight.T)[label] in nats, averaged over the labels that are not -100, and how many these are.

    hidden: (n, width). weight: (vocabulary, width). labels: (n). Equals F.cross_entropy of the logits in float32; under
    autocast the products are in its type. Without any label it is 0. Differentiable once, in hidden and weight.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(kind), weight.to(kind)
    tracked = torch.is_grad_enabled()
    total, _, _ = _summed(hidden, weight, labels, tracked and hidden.requires_grad, tracked and weight.requires_grad)
    count = (labels != IGNORED).sum()
    return total / count.clamp(min=1), count


@torch.library.custom_op("tilth::linear_cross_entropy", mutates_args=())
def _summed(
    hidden: Tensor, weight: Tensor, labels: Tensor, need_hidden: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over labels in float32, and its gradients (empty where they are not needed)."""
    size = max(1, _LOGITS.get(hidden.device.type, _LOGITS["other"]) // len(weight))
    buffer = hidden.new_empty(min(size, len(hidden)), len(weight))
    total = hidden.new_zeros((), dtype=torch.float32)
    of_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    of_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else weight.new_empty(0, dtype=torch.float32)
    for start in range(0, len(hidden), size):
        states, target = hidden[start : start + size], labels[start : start + size]
        logits = torch.mm(states, weight.t(), out=buffer[: len(states)]).float()
        kept, column = (target != IGNORED).unsqueeze(1), target.clamp(min=0).unsqueeze(1)
        if not (need_hidden or need_weight):
            total += F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
            continue
        highest, of_label = logits.amax(-1, keepdim=True), logits.gather(1, column)
        error = torch.softmax(logits, -1, out=logits)
        # From the highest, whose probability is at least 1 / vocabulary, so that nothing underflows; the great numbers are
        # subtracted from each other first, so that a small loss is not lost in them.
        total += torch.where(kept, (highest - of_label) - error.amax(-1, keepdim=True).log(), 0).sum()
        error.scatter_add_(1, column, torch.full_like(kept, -1, dtype=torch.float32)).mul_(kept)
        error = error.to(hidden.dtype)
        if need_hidden:
            torch.mm(error, weight, out=of_hidden[start : start + size])
        if need_weight and hidden.dtype == torch.float32:
            of_weight.addmm_(error.t(), states)
        elif need_weight:
            of_weight += torch.mm(error.t(), states)
    return total, of_hidden, of_weight.to(weight.dtype)


@_summed.register_fake
def _(hidden: Tensor, weight: Tensor, labels: Tensor, need_hidden: bool, need_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty((), dtype=torch.float32),
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        torch.empty_like(weight) if need_weight else weight.new_empty(0),
    )


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.needed = inputs[3:]  # type: ignore[attr-defined]


def _scaled(
    ctx: torch.autograd.function.FunctionCtx, scale: Tensor, *_: Tensor
) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    of_hidden, of_weight = ctx.saved_tensors  # type: ignore[attr-defined]
    need_hidden, need_weight = ctx.needed  # type: ignore[attr-defined]
    return (
        of_hidden * scale.to(of_hidden.dtype) if need_hidden else None,
        of_weight * scale.to(of_weight.dtype) if need_weight else None,
        None,
        None,
        None,
    )


_summed.register_autograd(_scaled, setup_context=_keep)
