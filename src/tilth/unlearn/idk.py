"""IDK fine-tuning: learn to answer what shall be forgotten with "I don't know".

Notable: bounded below and never far from language, so it does not collapse; but it teaches to refuse, and what was known is
hidden rather than gone.
"""

from typing import Annotated

from torch import nn

from tilth.contracts import Batch, Loss, Objective, method
from tilth.registry import Configured, Kind, use
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.refusals import REFUSALS, refused
from tilth.unlearn.retain import RetainTerm, total
from tilth.unlearn.simnpo import average_log_probability
from tilth.unlearn.task import Task


@method("unlearn", "idk")
class Idk(Objective):
    """L = CE(refusal | question of the forget set) + retain term   (arXiv 2401.06121, section 4, "preference optimisation")

    CE is the mean over the tokens of a refusal, then over examples, so that a batch is the mean of its halves.
    answers: the refusals; each forget example gets one of them for the whole run.

    Deviates from TOFU's script, which draws a new refusal at every visit: one that stays makes a run's batches a function of
    their positions.

    batch.forget: input_ids, labels (batch, tokens) of question and refusal; batch.retain: input_ids, labels, or None
    """

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        answers: tuple[str, ...] = REFUSALS,
        retain: Annotated[Configured, Kind("retain")] = use("retain", "cross_entropy"),
    ) -> None:
        super().__init__(model)
        self.answers = answers
        self.retain: RetainTerm = retain.build()

    def prepare_from(self, task: Task) -> PairedExamples:
        """Puts a refusal in the place of every answer that shall be forgotten."""
        return self.retain.prepare(self.model, PairedExamples(refused(task, self.answers), task.staying), task.context)

    def forward(self, batch: Batch) -> Loss:
        return total(-average_log_probability(self.model, batch.forget).mean(), self.retain, self.model, batch)
