"""Where things stand in a transformers causal LM, found from its structure and not from names of one family.

Notable: a decoder block is an entry of the one ModuleList that is as long as the configuration says the network is deep; in
it, the feed-forward part is what maps the hidden size to an inner size and back. Linear layers and GPT-2's transposed ones
(Conv1D) read alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tilth.errors import TilthError


@dataclass(frozen=True)
class FeedForward:
    """One block's feed-forward part: `down` maps keys (inner) to the residual stream (hidden).

    gate: its output is the pre-activation of the keys; up: what the gated activation is multiplied with, None without gating
    (then `gate` is the only way in). prefix: the full name of `down` in the model.
    """

    layer: int
    gate: nn.Module
    up: nn.Module | None
    down: nn.Module
    prefix: str

    def values(self) -> Tensor:
        """The value vectors, one row for each key: (inner, hidden), a view of the weight of `down`."""
        return self.down.weight if isinstance(self.down, Conv1D) else self.down.weight.t()  # type: ignore[return-value,operator,union-attr]


def blocks(model: Any) -> nn.ModuleList:
    """The decoder blocks, in order."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not found:
        raise TilthError(f"no list of {depth} blocks was found in {type(model).__name__}")
    return found[0]


def feed_forwards(model: Any) -> list[FeedForward]:
    """The feed-forward part of every block. Raises TilthError where a block has none, or several (mixtures of experts)."""
    names = {module: name for name, module in model.named_modules()}
    hidden = model.config.get_text_config().hidden_size
    return [_feed_forward(number, block, hidden, names, model) for number, block in enumerate(blocks(model))]


def _feed_forward(number: int, block: nn.Module, hidden: int, names: dict[nn.Module, str], model: Any) -> FeedForward:
    inside = [
        module for name, module in block.named_modules() if is_linear(module) and "attn" not in name and "attention" not in name
    ]
    down = [module for module in inside if shape(module)[1] == hidden]
    into = [module for module in inside if shape(module)[0] == hidden and module not in down[-1:]]
    if len(down) != 1:  # an inner size equal to the hidden size: what stands last leads back
        down = down[-1:] if down and shape(down[-1])[0] == hidden else down
    if len(down) != 1 or not 1 <= len(into) <= 2:
        raise TilthError(
            f"block {number} of {type(model).__name__} has no feed-forward part of the usual form (one or two ways in, one out)",
            hint="Methods that trace feed-forward keys work on dense decoders.",
        )
    gates = [module for module in into if "gate" in names[module].rsplit(".", 1)[-1] or len(into) == 1]
    gate = gates[0] if gates else into[0]
    up = next((module for module in into if module is not gate), None)
    return FeedForward(number, gate, up, down[0], names[down[0]])


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix product: nn.Linear and what is derived from it, or GPT-2's Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))


def shape(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear module."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return (weight.shape[0], weight.shape[1]) if isinstance(module, Conv1D) else (weight.shape[1], weight.shape[0])


def unembedding(model: Any) -> Tensor:
    """The matrix that makes logits of last hidden states: (vocabulary, hidden), tied to the embedding or not."""
    head = model.get_output_embeddings()
    if head is None:
        raise TilthError(f"{type(model).__name__} has no output layer of its own")
    return head.weight  # type: ignore[no-any-return]


def linear_names(model: Any) -> list[str]:
    """Full names of all linear modules but the output layer: what low-rank adapters attach to."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [name for name, module in model.named_modules() if is_linear(module) and module is not head]
