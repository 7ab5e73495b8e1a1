"""Prompts in batches, encoded as a generation begins from them: what guards read before they decide.

Notable: rows are padded on the right, where a causal model does not look, and of similar length, so what is read of a prompt
does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tilth.batches.text.encoding import Encoder, pad_token
from tilth.batches.text.ragged import offsets, padded, ranges

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel

_TOKENS = 2**13  # of one forward pass, padding included


class PromptBatch(NamedTuple):
    """rows: which prompts; input_ids, attention_mask (rows, tokens), int64; lengths (rows,): tokens of each."""

    rows: np.ndarray
    input_ids: Tensor
    attention_mask: Tensor
    lengths: Tensor

    def left(self) -> PromptBatch:
        """The same padded on the left, as a generation needs it."""
        place = torch.arange(self.input_ids.shape[1], device=self.lengths.device) - (
            self.input_ids.shape[1] - self.lengths[:, None]
        )
        ids = self.input_ids.gather(1, place.clamp(min=0))
        return PromptBatch(self.rows, ids, (place >= 0).long(), self.lengths)


def prompt_batches(
    text_model: TextModel, prompts: Sequence[str], device: torch.device, *, together: int | None = None, room: int = 0
) -> Iterator[PromptBatch]:
    """All prompts, longest first; an empty one is one padding token.

    together: the most prompts of a batch. A prompt too long for the model's context, `room` tokens for an answer left (at most
    half of the context), loses its front.
    """
    encoder, pad = Encoder(text_model.tokenizer), pad_token(text_model.tokenizer)
    ids, lengths = encoder(prompts)
    head, _ = encoder.frame()
    context = int(getattr(text_model.model.config.get_text_config(), "max_position_embeddings", 0) or 2048)
    kept = np.minimum(lengths, context - min(room, max(1, context // 2)) - len(head))
    starts = offsets(lengths)[1:] - kept
    order = np.argsort(-kept, kind="stable")
    at = 0
    while at < len(order):
        width = max(1, len(head) + int(kept[order[at]]))
        rows = order[at : at + min(max(1, _TOKENS // width), together or len(order))]
        at += len(rows)
        body = padded(ids[ranges(starts[rows], kept[rows])].astype(np.int64), kept[rows], width - len(head), pad)
        whole = np.concatenate([np.tile(head.astype(np.int64), (len(rows), 1)), body], 1).astype(np.int64)
        size = np.maximum(kept[rows] + len(head), 1)
        mask = (np.arange(width) < size[:, None]).astype(np.int64)
        yield PromptBatch(
            rows, torch.from_numpy(whole).to(device), torch.from_numpy(mask).to(device), torch.from_numpy(size).to(device)
        )
