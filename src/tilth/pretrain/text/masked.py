"""Masked language modelling.

Notable: the vocabulary head, which is most of a small model, sees only the masked tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForMaskedLM, ModernBertForMaskedLM, RobertaForMaskedLM

from tilth.backbones.states import given, inputs_of, last_states
from tilth.contracts import Batch, Loss, Objective, method
from tilth.pretrain.text.cross_entropy import IGNORED


@method("pretrain", "masked")
class MaskedTokens(Objective):
    """L = mean over masked tokens of -log p(token | the corrupted row), in nats (BERT, arXiv 1810.04805).

    batch.input_ids (corrupted), batch.labels (-100 where nothing is predicted): (batch, tokens). batch.positions, if
    there: (batch, targets), columns that hold all targets; others it names have label -100. count: number of targets;
    bits: the loss in bits per masked token.
    """

    def forward(self, batch: Batch) -> Loss:
        positions = given(batch, "positions")
        head = _head(self.model)
        if positions is None:
            logits, targets = self.model(**inputs_of(batch)).logits, batch.labels
        elif head is None:
            logits = self.model(**inputs_of(batch)).logits.take_along_dim(positions.unsqueeze(2), 1)
            targets = batch.labels.gather(1, positions)
        else:
            states = last_states(self.model, batch)  # type: ignore[arg-type]
            logits = head(states.take_along_dim(positions.unsqueeze(2), 1))
            targets = batch.labels.gather(1, positions)
        count = (targets != IGNORED).sum()
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        loss = total / count.clamp(min=1)
        return Loss(loss, count=count, bits=loss / math.log(2))


def _head(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """From last hidden states to logits, of the networks it can be named for."""
    if isinstance(model, BertForMaskedLM):
        return model.cls
    if isinstance(model, RobertaForMaskedLM):
        return model.lm_head
    if isinstance(model, ModernBertForMaskedLM):
        return lambda states: model.decoder(model.head(states))
    return None
