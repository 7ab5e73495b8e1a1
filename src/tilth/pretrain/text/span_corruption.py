"""Span corruption: an encoder-decoder restores what was taken out of a text.

Notable: rows have fixed shapes and no padding (see batches.text.span_corruption), so there is no mask to build.
"""

from __future__ import annotations

import math

from torch.nn import functional as F

from tilth.backbones.states import inputs_of
from tilth.contracts import Batch, Loss, Objective, method
from tilth.pretrain.text.cross_entropy import IGNORED


@method("pretrain", "span_corruption")
class SpanCorruptionLoss(Objective):
    """L = mean over target tokens of -log p(token | corrupted input, targets before it), in nats (T5, arXiv 1910.10683).

    batch.input_ids (batch, encoder tokens), batch.labels (batch, decoder tokens), -100 where there is no target.
    count: number of targets; bits: the loss in bits per target.
    """

    def forward(self, batch: Batch) -> Loss:
        shifted = self.model.prepare_decoder_input_ids_from_labels(batch.labels)  # type: ignore[operator]
        logits = self.model(**inputs_of(batch), decoder_input_ids=shifted, use_cache=False).logits
        count = (batch.labels != IGNORED).sum()
        total = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
        loss = total / count.clamp(min=1)
        return Loss(loss, count=count, bits=loss / math.log(2))
