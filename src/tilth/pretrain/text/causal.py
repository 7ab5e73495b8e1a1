"""Next-token prediction.

Notable: logits exist only where a token is predicted and never all at once; a batch that names the columns of its
targets has only those run through the vocabulary.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.states import given, inputs_of, last_states, output_weight
from tilth.contracts import Batch, Loss, Objective, method
from tilth.pretrain.text.cross_entropy import IGNORED, linear_cross_entropy


@method("pretrain", "causal")
class Causal(Objective):
    """L = mean over targets of -log p(token t | tokens before t), in nats; count is the number of targets.

    batch.input_ids, batch.labels: (batch, tokens), aligned; a label that is not -100, other than in column 0, is a target.
    batch.positions, if there: (batch, targets), columns that hold all targets; others it names have label -100.
    bits: the same loss in bits per token. The loss equals transformers' own for the same labels.
    """

    def forward(self, batch: Batch) -> Loss:
        loss, count = next_token_cross_entropy(self.model, batch)
        return Loss(loss, count=count, bits=loss / math.log(2))


def next_token_cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of a batch's targets under a causal model, and how many targets there are."""
    positions = given(batch, "positions")
    if positions is None:
        targets = batch.labels[:, 1:].flatten()
    else:
        targets = batch.labels.gather(1, positions).flatten()
        before = (positions - 1).clamp(min=0)
    weight = output_weight(model)
    if weight is not None:
        states = last_states(model, batch)  # type: ignore[arg-type]
        states = states[:, :-1] if positions is None else states.take_along_dim(before.unsqueeze(2), 1)
        return linear_cross_entropy(states.flatten(0, 1), weight, targets)
    if positions is None:
        logits = model(**inputs_of(batch), use_cache=False).logits[:, :-1]
    else:
        logits = model(**inputs_of(batch), use_cache=False, logits_to_keep=before).logits
    count = (targets != IGNORED).sum()
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / count.clamp(min=1), count
