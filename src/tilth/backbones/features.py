"""Frozen features of texts: one vector each.

Notable: texts are sorted by length, so that batches hardly pad, and come back in the order they were given; the
language-model head never runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import TextModel
from tilth.backbones.picture_features import picture_features
from tilth.contracts import Examples

Content = Sequence[str] | Examples  # what a model reads: texts, or examples with pixel_values


def features_of(text_model: TextModel, content: Content) -> NDArray[np.float32]:
    """One vector per text, picture or whatever the model reads: float32 (rows, width)."""
    if text_model.tokenizer is None:
        return picture_features(text_model.model, content)  # type: ignore[arg-type]
    return embed(text_model, content)  # type: ignore[arg-type]


def embed(text_model: TextModel, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
    """Mean of the last hidden states over a text's tokens, padding left out: float32 (texts, width).

    Causal and masked models and encoders of encoder-decoders. Texts longer than the model's context are cut. A text
    without any token counts as the end-of-sequence token alone.
    """
    model, tokenizer = text_model.model, text_model.tokenizer
    body = _body(model)
    out = np.zeros((len(texts), model.config.get_text_config().hidden_size), np.float32)
    if not len(texts):
        return out
    context = getattr(model.config, "max_position_embeddings", None)
    ids = tokenizer(list(texts), truncation=context is not None, max_length=context)["input_ids"]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    with evaluating(model) as device:
        for chosen in np.array_split(np.argsort([-len(row) for row in ids], kind="stable"), -(-len(texts) // batch_size)):
            rows = [torch.tensor(ids[index] or [end]) for index in chosen]
            padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad).to(device)
            size = torch.tensor([len(row) for row in rows], device=device)
            mask = torch.arange(padded.shape[1], device=device) < size[:, None]
            hidden = body(input_ids=padded, attention_mask=mask.long()).last_hidden_state
            out[chosen] = _mean(hidden, mask).cpu().numpy()
    return out


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each row, in float32."""
    kept = mask[:, :, None].float()
    return (hidden.float() * kept).sum(1) / kept.sum(1)


def _body(model: nn.Module) -> nn.Module:
    """The network without its head; of an encoder-decoder the encoder."""
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        return model.get_encoder()  # type: ignore[operator,no-any-return]
    return model.base_model  # type: ignore[return-value]
