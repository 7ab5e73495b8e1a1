"""Direct preference optimisation with "I don't know" preferred to the answer that shall be forgotten.

Notable: both references are computed once, before the first step; without the preferred half it is NPO, to the constant.
"""

from typing import Annotated

import numpy as np
from torch import nn
from torch.nn.functional import logsigmoid

from tilth.contracts import Batch, Examples, Loss, Objective, method
from tilth.noise import Noise
from tilth.registry import Configured, Kind, Positive, use
from tilth.unlearn.likelihood import answer_log_probability
from tilth.unlearn.pairs import PairedExamples, WithArrays
from tilth.unlearn.reference import log_probabilities
from tilth.unlearn.refusals import REFUSALS, refused
from tilth.unlearn.retain import RetainTerm, total
from tilth.unlearn.task import Task


@method("unlearn", "dpo", systems=[33])
class DPO(Objective):
    """L = -2/beta * mean(log sigmoid(beta * (r_refusal - r_answer))) + retain term   (arXiv 2305.18290, eq. 7; 2404.05868)

    r = log p(answer | prompt) - log p_reference(answer | prompt), in nats, summed over the answer, of each of the two.
    answers: the refusals; each forget example gets one of them for the whole run.

    Deviates from 2305.18290 by the factor 2/beta, which puts it on the scale of NPO (as locuslab/open-unlearning does), and from
    TOFU's script by not drawing a new refusal at every visit, so that its reference is one number.

    batch.forget: input_ids, labels (batch, tokens), reference (batch,) in nats, and `preferred`: the same of the refusals
    batch.retain: input_ids, labels, or None
    """

    needs = ("reference", "preferred")

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        beta: Positive = 0.1,
        answers: tuple[str, ...] = REFUSALS,
        retain: Annotated[Configured, Kind("retain")] = use("retain", "cross_entropy"),
    ) -> None:
        super().__init__(model)
        self.beta, self.answers = beta, answers
        self.retain: RetainTerm = retain.build()

    def prepare_from(self, task: Task) -> PairedExamples:
        """Puts a refusal beside every answer, each with its log-probability under the model as it is now."""

        def referenced(examples: Examples) -> Examples:
            return WithArrays(examples, {"reference": log_probabilities(self.model, examples, task.context)})

        pairs = Preferring(referenced(task.going), referenced(refused(task, self.answers)))
        return self.retain.prepare(self.model, PairedExamples(pairs, task.staying), task.context)

    def forward(self, batch: Batch) -> Loss:
        rejected = answer_log_probability(self.model, batch.forget) - batch.forget.reference
        preferred = answer_log_probability(self.model, batch.forget.preferred) - batch.forget.preferred.reference
        forget = -2 / self.beta * logsigmoid(self.beta * (preferred - rejected)).mean()
        return total(forget, self.retain, self.model, batch)


class Preferring:
    """Examples of what is rejected; every batch holds, as `preferred`, the batch of what is preferred to it."""

    def __init__(self, rejected: Examples, preferred: Examples) -> None:
        self.rejected, self.preferred = rejected, preferred

    def __len__(self) -> int:
        return len(self.rejected)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        batch, preferred = self.rejected.batch(indices, noise), self.preferred.batch(indices, noise)
        return Batch(tokens=batch.tokens + preferred.tokens, samples=batch.samples, **batch, preferred=preferred)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return self.rejected.rows(indices)
