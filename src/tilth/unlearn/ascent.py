"""Gradient ascent on what shall be forgotten, alone and against gradient descent on what shall stay: the baselines.

Notable: unbounded below, so both go on pushing after everything is forgotten; that is what NPO repairs.
"""

from typing import Annotated, Literal

from torch import Tensor, nn

from tilth.context import Context
from tilth.contracts import Batch, Loss, Objective, method
from tilth.registry import Configured, Kind, NonNegative, use
from tilth.unlearn.likelihood import answer_log_probability, cross_entropy
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.retain import RetainCrossEntropy, RetainTerm, total

Per = Literal["token", "example"]


def ascent(model: nn.Module, forget: Batch, per: Per) -> Tensor:
    """log p of the answers: its mean over answer tokens, or over examples of the sum over each answer's tokens."""
    return -cross_entropy(model, forget) if per == "token" else answer_log_probability(model, forget).mean()


@method("unlearn", "gradient_ascent", systems=[33])
class GradientAscent(Objective):
    """L = log p(forget) + retain term   (arXiv 2404.05868, section 2; GA with none, GA+KL with kl)

    per: 'token' averages over answer tokens, as released; 'example' sums over each answer and averages over examples,
    the gradient NPO has at its start.

    batch.forget, batch.retain: input_ids, labels (batch, tokens), -100 outside the answer; retain may be None
    """

    def __init__(
        self, model: nn.Module, /, *, per: Per = "token", retain: Annotated[Configured, Kind("retain")] = use("retain", "none")
    ) -> None:
        super().__init__(model)
        self.per: Per = per
        self.retain: RetainTerm = retain.build()

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        return self.retain.prepare(self.model, examples, context)

    def forward(self, batch: Batch) -> Loss:
        return total(ascent(self.model, batch.forget, self.per), self.retain, self.model, batch)


@method("unlearn", "gradient_difference", systems=[33])
class GradientDifference(Objective):
    """L = log p(forget) + retain_weight * CE(retain), CE averaged over answer tokens   (arXiv 2203.12817; GradDiff of TOFU)

    per: as in gradient_ascent.  batch.forget, batch.retain: input_ids, labels (batch, tokens), -100 outside the answer
    """

    def __init__(self, model: nn.Module, /, *, per: Per = "token", retain_weight: NonNegative = 1.0) -> None:
        super().__init__(model)
        self.per: Per = per
        self.retain = RetainCrossEntropy(weight=retain_weight)

    def forward(self, batch: Batch) -> Loss:
        return total(ascent(self.model, batch.forget, self.per), self.retain, self.model, batch)
