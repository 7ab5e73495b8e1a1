"""Where a subject stands in a prompt, and what the network holds there: keys of feed-forward parts, states of the residual stream.

Notable: a subject is found in the text and then among the tokens by their spans, so it does not matter how a tokeniser cuts
names or marks spaces; whole words only ("Ann Lee" is not found in "Ann Leeson").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tilth.backbones.locations import blocks, feed_forwards
from tilth.batches.text.encoding import Encoder, pad_token
from tilth.errors import TilthError

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel


class Located(NamedTuple):
    """input_ids, attention_mask, position_ids (prompts, tokens); at (prompts,): the column of the subject's last token."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    at: Tensor


class Traced(NamedTuple):
    """keys: block -> (prompts, inner), what enters the feed-forward part's way out; states: block -> (prompts, hidden), what the
    residual stream holds behind it; both at the subject's last token, float32."""

    keys: dict[int, Tensor]
    states: dict[int, Tensor]


def locate(
    tokenizer: Any, prompts: Sequence[str], subjects: Sequence[str], *, padding: Literal["right", "left"] = "right"
) -> Located:
    """The prompts as a batch, and where each one's subject ends; of several mentions the last. TilthError if there is none."""
    encodings = Encoder(tokenizer).core.encode_batch(list(prompts), add_special_tokens=True)
    width = max(len(encoding) for encoding in encodings)
    ids = torch.full((len(prompts), width), pad_token(tokenizer))
    mask, at = torch.zeros_like(ids), torch.zeros(len(prompts), dtype=torch.long)
    for row, (encoding, prompt, subject) in enumerate(zip(encodings, prompts, subjects, strict=True)):
        start = 0 if padding == "right" else width - len(encoding)
        ids[row, start : start + len(encoding)] = torch.tensor(encoding.ids)
        mask[row, start : start + len(encoding)] = 1
        mentions = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)) if subject else []
        token = encoding.char_to_token(mentions[-1].end() - 1) if mentions else None
        if token is None:
            raise TilthError(
                f"the prompt does not name '{subject}'", where=prompt, hint="Write {subject} where the name belongs."
            )
        at[row] = start + token
    return Located(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), at)


@torch.no_grad()
def trace(text_model: TextModel, located: Located, layers: Sequence[int], device: torch.device) -> Traced:
    """Run the prompts once and keep what stands at their subjects, of the given blocks."""
    model, keys, states = text_model.model, dict[int, Tensor](), dict[int, Tensor]()
    rows = torch.arange(len(located.at))

    def key(layer: int, inputs: Tensor) -> None:
        keys[layer] = inputs[rows, located.at].float()

    def state(layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            states[layer] = hidden[rows, located.at].float()

        return keep

    handles = [blocks(model)[layer].register_forward_hook(state(layer)) for layer in layers]
    try:
        with keys_of(model, layers, key):
            model(
                input_ids=located.input_ids.to(device), attention_mask=located.attention_mask.to(device),
                position_ids=located.position_ids.to(device), use_cache=False,
            )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    return Traced(keys, states)


@contextmanager
def keys_of(model: Any, layers: Sequence[int], receive: Any) -> Iterator[None]:
    """Within, receive(layer, keys) gets the keys (prompts, tokens, inner) of every forward pass."""
    parts = feed_forwards(model)

    def hook(layer: int) -> Any:
        return lambda module, inputs: receive(layer, inputs[0])

    handles = [parts[layer].down.register_forward_pre_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
