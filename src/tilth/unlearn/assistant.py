"""A small model inside a large one: its first blocks, with embeddings, last norm and output layer, and low-rank additions.

Notable: whatever is frozen is shared with the target and takes no memory of its own; only the additions are trained and
saved. The blocks are found from the structure, so any transformers causal LM can be cut, quantised ones too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tilth.backbones.locations import blocks
from tilth.errors import TilthError
from tilth.unlearn.lora import attach


def first_blocks(model: Any, count: int) -> Any:
    """A model of the first `count` blocks of `model`: modules of its own, parameters those of `model`, in eval mode.

    Raises TilthError when it has fewer.
    """
    whole = blocks(model)
    depth = len(whole)
    if count > depth:
        raise TilthError(f"an assistant of {count} blocks cannot be cut from a model of {depth}", hint="Lower 'layers'.")
    # Parameters are put into deepcopy's memory as their own copies; blocks that are not kept are never reached.
    memory: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memory[id(whole)] = short = nn.ModuleList()
    cut = copy.deepcopy(model, memory)
    short.extend(copy.deepcopy(block, memory) for block in whole[:count])
    config = cut.config.get_text_config()
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depth:  # one entry for each block
            setattr(config, name, value[:count])
    config.num_hidden_layers = count
    return cut.eval()


def assistant_of(model: Any, count: int, *, rank: int, alpha: float, dropout: float, seed: int = 0) -> Any:
    """The first `count` blocks with LoRA on all linear layers but the output layer: the same outputs as without, before training.

    Within `frozen(model)` only the additions have gradients.
    """
    cut = first_blocks(model, count)
    with frozen(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attach(cut, rank, alpha, dropout, ())
    return cut.eval()  # dropout is new in it


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter of `model` wants a gradient; afterwards those do again that did."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def additions(assistant: nn.Module) -> dict[str, Tensor]:
    """The low-rank parameters, by name."""
    return {name: parameter for name, parameter in assistant.named_parameters() if ".lora_" in name}


def take_additions(assistant: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `additions` gave. Raises TilthError when they are not those of this assistant."""
    there = additions(assistant)
    if set(there) != set(tensors):
        raise TilthError("what is kept of the assistant does not fit the model it was cut from")
    with torch.no_grad():
        for name, parameter in there.items():
            parameter.copy_(tensors[name])
