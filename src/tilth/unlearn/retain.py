"""Retain terms: what keeps the rest of a model in place while an objective takes something out. Kind 'retain'.

Notable: any forget term goes with any retain term (`total` joins them), so that NPO+RT, NPO+KL or GA+KL are settings,
not classes. The reference of the KL term is the model before the first step: its distributions come with the batch when
all of them fit in `memory`, and from a frozen copy when they do not.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from tilth.context import Context
from tilth.contracts import Batch, Loss, method
from tilth.errors import TilthError
from tilth.registry import NonNegative
from tilth.unlearn.likelihood import cross_entropy, kl_divergence, log_distribution
from tilth.unlearn.pairs import PairedExamples, WithArrays
from tilth.unlearn.reference import distributions, frozen_copy


class RetainTerm(Protocol):
    """weight: of the term in the loss."""

    weight: float

    def __call__(self, model: nn.Module, retain: Batch) -> Tensor:
        """The unweighted term of a batch of retain examples: a scalar."""
        ...

    def prepare(self, model: nn.Module, examples: PairedExamples, context: Context) -> PairedExamples:
        """Called once, before the first step, with the model as it is then."""
        ...


@method("retain", "none")
class NoRetain:
    """Nothing holds the rest of the model."""

    weight = 0.0

    def __call__(self, model: nn.Module, retain: Batch) -> Tensor:
        return retain.labels.new_zeros((), dtype=torch.float32)

    def prepare(self, model: nn.Module, examples: PairedExamples, context: Context) -> PairedExamples:
        return PairedExamples(examples.forget, None)


@method("retain", "cross_entropy", systems=[33])
class RetainCrossEntropy:
    """weight * mean over the answer tokens of -log p(token): the RT of NPO+RT, the second half of gradient difference."""

    def __init__(self, *, weight: NonNegative = 1.0) -> None:
        self.weight = weight

    def __call__(self, model: nn.Module, retain: Batch) -> Tensor:
        return cross_entropy(model, retain)

    def prepare(self, model: nn.Module, examples: PairedExamples, context: Context) -> PairedExamples:
        return examples


@method("retain", "kl", systems=[33])
class RetainKL:
    """weight * mean over positions of KL(p_reference || p): the KL of NPO+KL and GA+KL.

    positions: 'answer' averages over answer tokens; 'all' over every position of the padded batch, questions and padding
    included, as the code released with arXiv 2404.05868 does (it then depends on the padding).
    memory: bytes the stored reference distributions (answer tokens x vocabulary, float32) may take on disk; beyond it, and
    for 'all', a frozen copy of the model runs beside it at every step.
    """

    def __init__(
        self, *, weight: NonNegative = 1.0, positions: Literal["answer", "all"] = "answer", memory: NonNegative = 2.0**31
    ) -> None:
        self.weight, self.positions, self.memory = weight, positions, memory
        self.frozen: nn.Module | None = None

    def __call__(self, model: nn.Module, retain: Batch) -> Tensor:
        everywhere = self.positions == "all"
        if "reference" in retain:
            reference = retain.reference
        elif self.frozen is not None:
            self.frozen.to(retain.labels.device)
            with torch.no_grad():
                reference = log_distribution(self.frozen, retain, everywhere=everywhere)
        else:
            raise TilthError(
                "the KL retain term has no reference", hint="Call the objective's `prepare` before training, or use `forget`."
            )
        return kl_divergence(reference, log_distribution(model, retain, everywhere=everywhere))

    def prepare(self, model: nn.Module, examples: PairedExamples, context: Context) -> PairedExamples:
        if examples.retain is None:
            return examples
        stored = distributions(model, examples.retain, context, limit=self.memory) if self.positions == "answer" else None
        if stored is None:
            self.frozen = frozen_copy(model)
            context.progress.say("KL: reference distributions are not stored; a frozen copy of the model runs at every step")
            return examples
        return PairedExamples(examples.forget, WithArrays(examples.retain, {"reference": stored}))


def total(forget: Tensor, retain: RetainTerm, model: nn.Module, batch: Batch) -> Loss:
    """forget + retain.weight * retain, a mean over the forget examples; a batch without retain examples has no retain term."""
    kept_batch = batch.get("retain")
    kept = retain(model, kept_batch) if kept_batch is not None and retain.weight > 0 else forget.new_zeros(())
    return Loss(forget + retain.weight * kept, count=len(batch.forget.labels), forget=forget, retain=kept)
