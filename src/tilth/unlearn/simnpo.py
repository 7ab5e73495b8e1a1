"""SimNPO: negative preference optimisation without a reference model, by the length-normalised likelihood.

Notable: nothing is computed before the first step; long and short answers are forgotten at one pace, where NPO's reference
lets answers that were unlikely to begin with go on being pushed.
"""

from typing import Annotated

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tilth.context import Context
from tilth.contracts import Batch, Loss, Objective, method
from tilth.registry import Configured, Kind, NonNegative, Positive, use
from tilth.unlearn.likelihood import IGNORED, answer_log_probability
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.retain import RetainTerm, total


def average_log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """log p(answer | prompt) / |answer| of each example, in nats per token: (batch,)."""
    labels = batch.labels
    length = (labels[:, 1:] != IGNORED).sum(1).clamp(min=1) if labels.ndim > 1 else 1
    return answer_log_probability(model, batch) / length


@method("unlearn", "simnpo")
class SimNPO(Objective):
    """L = -2/beta * mean(log sigmoid(-beta/|y| * log p(y | x) - gamma)) + retain term   (arXiv 2410.07163, section 5)

    |y|: answer tokens of the example, its end included. gamma: margin. The gradient is gradient ascent's on log p / |y|,
    weighted per example by 2 * sigmoid(beta/|y| * log p + gamma). Defaults are the paper's for TOFU forget10.

    batch.forget, batch.retain: input_ids, labels (batch, tokens), -100 outside the answer; retain may be None
    """

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        beta: Positive = 4.5,
        gamma: NonNegative = 0.0,
        retain: Annotated[Configured, Kind("retain")] = use("retain", "cross_entropy"),
    ) -> None:
        super().__init__(model)
        self.beta, self.gamma = beta, gamma
        self.retain: RetainTerm = retain.build()

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        return self.retain.prepare(self.model, examples, context)

    def forward(self, batch: Batch) -> Loss:
        average = average_log_probability(self.model, batch.forget)
        forget = -2 / self.beta * logsigmoid(-self.beta * average - self.gamma).mean()
        return total(forget, self.retain, self.model, batch)
