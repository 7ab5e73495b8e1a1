"""The inverted hinge loss of LoKU: the answer's token goes down, its strongest rival goes up, the others stay.

Notable: bounded, without a reference model; works on logits through one logsumexp, so a softmax over the vocabulary is never
stored. With the adapter 'fila' it is the whole of LoKU; with 'lora' or none, its loss alone.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from tilth.context import Context
from tilth.contracts import Batch, Loss, Objective, method
from tilth.registry import Configured, Kind, use
from tilth.unlearn.likelihood import answers
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.retain import RetainTerm, total


def inverted_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """1 + p(target) - max over the other classes of p, in [0, 2]: (n,), of logits (n, classes) and targets (n,).

    In the logits its gradient is p_t (1 - p_t + p_*) at the target, -p_* (1 + p_t - p_*) at the rival, p_v (p_* - p_t) elsewhere.
    """
    own = logits.gather(1, targets[:, None])[:, 0]
    rival = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    scale = logits.logsumexp(1)
    return 1 + (own - scale).exp() - (rival - scale).exp()


@method("unlearn", "loku", systems=[22])
class LoKU(Objective):
    """L = mean over answer tokens of [1 + p(token) - max over others of p] + retain term   (arXiv 2408.06621, section 3.2)

    The mean is over all answer tokens of the batch, as in the official code, so long answers weigh more.

    batch.forget, batch.retain: input_ids, labels (batch, tokens), -100 outside the answer; retain may be None
    """

    def __init__(
        self, model: nn.Module, /, *, retain: Annotated[Configured, Kind("retain")] = use("retain", "cross_entropy")
    ) -> None:
        super().__init__(model)
        self.retain: RetainTerm = retain.build()

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        return self.retain.prepare(self.model, examples, context)

    def forward(self, batch: Batch) -> Loss:
        logits, targets, _ = answers(self.model, batch.forget)
        forget = inverted_hinge(logits, targets).sum() / max(len(targets), 1)
        return total(forget, self.retain, self.model, batch)
