"""Last hidden states of text networks, for heads that run only where something is to be predicted.

Notable: a Llama without padding is run layer by layer with no mask at all; through its own forward a compiled graph would
build one (transformers looks for packed documents in position_ids whenever it traces) and lose the causal kernel.
"""

from __future__ import annotations

from torch import Tensor, arange
from torch.nn import Module
from transformers import LlamaForCausalLM, PreTrainedModel

from tilth.contracts import Batch

_PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "olmo2"})
_INPUTS = ("attention_mask", "position_ids", "token_type_ids")


def given(batch: Batch, name: str) -> Tensor | None:
    """A tensor that not every batch has. A compiled graph is remade when it comes or goes, because this asks the dict:
    Mapping's own `get` and `in` try and catch KeyError, which leaves no guard, and a mask would be ignored silently."""
    value: Tensor | None = batch.values_.get(name)  # type: ignore[assignment]
    return value


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The batch's inputs as transformers names them."""
    extra = {name: given(batch, name) for name in _INPUTS}
    return {"input_ids": batch.input_ids, **{name: value for name, value in extra.items() if value is not None}}


def output_weight(model: Module) -> Tensor | None:
    """The matrix (vocabulary, width) that alone makes logits of a causal model's last hidden states; None if more does."""
    if isinstance(model, PreTrainedModel) and model.config.model_type in _PLAIN_HEADS:
        head = model.get_output_embeddings()
        if head is not None and getattr(head, "bias", None) is None:
            return head.weight  # type: ignore[return-value]
    return None


def last_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What the network's head sees: (batch, tokens, width). batch: input_ids and, where needed, attention_mask (batch,
    tokens), or (batch, 1, tokens, tokens), and position_ids."""
    mask = given(batch, "attention_mask")
    if type(model) is LlamaForCausalLM and model.config._attn_implementation == "sdpa" and (mask is None or mask.ndim == 4):
        return _llama_states(model, batch.input_ids, mask, given(batch, "position_ids"))
    states: Tensor = model.base_model(**inputs_of(batch), **_without_cache(model)).last_hidden_state
    return states


def _llama_states(model: LlamaForCausalLM, input_ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
    body = model.model
    states = body.embed_tokens(input_ids)
    if positions is None:
        positions = arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
    rotations = body.rotary_emb(states, position_ids=positions)
    for layer in body.layers:
        states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=rotations)
    return body.norm(states)  # type: ignore[no-any-return]


def _without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """Keys and values are kept for generation alone."""
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}
