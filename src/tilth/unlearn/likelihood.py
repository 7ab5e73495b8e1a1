"""How likely a model finds the answers of a batch: what every unlearning objective is made of.

Notable: vocabulary logits are computed only where an answer token is predicted, in any transformers causal LM, by
handing its output layer the chosen positions; a classifier is the case of one answer token per example, so the same
objectives unlearn from classifiers; log-probabilities are in nats and never in half precision, whatever the model computes in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.contracts import Batch

IGNORED = -100
_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "pixel_values")


class Answers(NamedTuple):
    """logits (n, classes) of the n predicted answer tokens of a batch, row after row; targets (n,); where they stand.

    where: (batch, tokens) bool, true at the n positions that predict; (batch, 1), all true, for a classifier.
    """

    logits: Tensor
    targets: Tensor
    where: Tensor


def answers(model: nn.Module, batch: Batch) -> Answers:
    """What `model` predicts at the answer tokens of `batch`.

    batch: labels (batch, tokens), -100 outside the answer and aligned with input_ids: a causal LM; or labels (batch,):
    a classifier. Its inputs are the usual ones of transformers, or `inputs` for a module that takes one tensor.
    """
    labels = batch.labels
    if labels.ndim == 1:
        return Answers(_call(model, batch), labels, torch.ones_like(labels, dtype=torch.bool).unsqueeze(1))
    where = F.pad(labels[:, 1:] != IGNORED, (0, 1))
    return Answers(_logits_at(model, batch, where), labels[:, 1:][where[:, :-1]].long(), where)


def answer_log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """log p(answer | prompt) of each example, summed over its answer tokens, in nats: (batch,)."""
    logits, targets, where = answers(model, batch)
    tokens = -F.cross_entropy(logits, targets, reduction="none")
    return tokens.new_zeros(where.shape).masked_scatter(where, tokens).sum(1)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """-log p of an answer token, in nats, averaged over all answer tokens of the batch: a scalar.

    A batch without any answer token gives 0, with zero gradient.
    """
    logits, targets, _ = answers(model, batch)
    return F.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)


def log_distribution(model: nn.Module, batch: Batch, *, everywhere: bool = False) -> Tensor:
    """Log-probabilities of every class at each answer position: (n, classes), row after row.

    everywhere: at all positions of the batch instead, prompt and padding included (a causal LM only).
    """
    if everywhere and batch.labels.ndim > 1:
        return _logits_at(model, batch, torch.ones_like(batch.labels, dtype=torch.bool)).log_softmax(-1)
    return answers(model, batch).logits.log_softmax(-1)


def kl_divergence(reference: Tensor, log_probability: Tensor) -> Tensor:
    """KL(reference || model), in nats, averaged over positions; both (n, classes), log-probabilities."""
    return F.kl_div(log_probability, reference, reduction="sum", log_target=True) / max(len(reference), 1)


def _logits_at(model: nn.Module, batch: Batch, where: Tensor) -> Tensor:
    """Logits (n, vocabulary) at the n true positions of `where` (batch, tokens)."""
    with _output_only_at(model, where):
        logits = _call(model, batch)
    if logits.shape[:2] == where.shape:  # a model without an output layer of its own to ask
        logits = logits[where]
    return logits.reshape(-1, logits.shape[-1])


@contextmanager
def _output_only_at(model: nn.Module, where: Tensor) -> Iterator[None]:
    """Within, the model's output layer sees the chosen positions as one row: (1, n, width), and so do caps and scales after it."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][where].unsqueeze(0), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _call(model: nn.Module, batch: Batch) -> Tensor:
    inputs: dict[str, Any] = {name: batch[name] for name in _INPUTS if name in batch and batch[name] is not None}
    if not inputs:
        output = model(batch.inputs)
    elif "input_ids" in inputs and batch.labels.ndim > 1:
        output = model(**inputs, use_cache=False)
    else:
        output = model(**inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
