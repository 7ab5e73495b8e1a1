"""Negative preference optimisation: forget without collapsing.

Notable: the reference never runs here (its log-probabilities come with the batch, computed once by `prepare`);
log-probabilities are summed over the answer, not averaged, or beta would mean something else for every length.
"""

from typing import Annotated

from torch import nn
from torch.nn.functional import logsigmoid

from tilth.context import Context
from tilth.contracts import Batch, Loss, Objective, method
from tilth.registry import Configured, Kind, Positive, use
from tilth.unlearn.likelihood import answer_log_probability
from tilth.unlearn.pairs import PairedExamples, WithArrays
from tilth.unlearn.reference import log_probabilities
from tilth.unlearn.retain import RetainTerm, total


@method("unlearn", "npo", systems=[33])
class NPO(Objective):
    """L = -2/beta * mean(log sigmoid(-beta * r)) + retain term   (arXiv 2404.05868, eq. 3)

    r = log p(answer | prompt) - log p_reference(answer | prompt), one number per example, in nats.
    The gradient is gradient ascent's, weighted per example by 2 * sigmoid(beta * r): 1 at the start, 0 once forgotten.
    retain: 'cross_entropy' makes NPO+RT, 'kl' NPO+KL, 'none' plain NPO; without a retain set there is no term.

    batch.forget: input_ids, labels (batch, tokens), -100 outside the answer; reference (batch,) in nats
    batch.retain: input_ids, labels, or None
    """

    needs = ("reference",)

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        beta: Positive = 0.1,
        retain: Annotated[Configured, Kind("retain")] = use("retain", "cross_entropy"),
    ) -> None:
        super().__init__(model)
        self.beta = beta
        self.retain: RetainTerm = retain.build()

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        """Adds the reference of every forget example: the model as it is now."""
        reference = log_probabilities(self.model, examples.forget, context)
        known = PairedExamples(WithArrays(examples.forget, {"reference": reference}), examples.retain)
        return self.retain.prepare(self.model, known, context)

    def forward(self, batch: Batch) -> Loss:
        log_ratio = answer_log_probability(self.model, batch.forget) - batch.forget.reference
        forget = -2 / self.beta * logsigmoid(-self.beta * log_ratio).mean()
        return total(forget, self.retain, self.model, batch)
