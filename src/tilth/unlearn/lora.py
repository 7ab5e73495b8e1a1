"""LoRA while an objective trains: peft's own layers, put into the model in place and folded back into ordinary weights.

Notable: attached to all linear layers but the output layer, found from the structure; the first factor is drawn from the run's
seed, so that a run repeats; after folding the model has the layout, and the trainable parameters, that it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tilth.backbones.locations import linear_names
from tilth.context import Context
from tilth.contracts import Reparametrisation, method
from tilth.errors import TilthError
from tilth.registry import Fraction, Positive, PositiveInt
from tilth.unlearn.pairs import PairedExamples

NAME = "default"  # of the one adapter a layer has


@method("adapter", "lora", systems=[22])
class Lora(Reparametrisation):
    """W x -> W x + (alpha / rank) * B A x with W frozen, A (rank, in) random and B (out, rank) zero   (arXiv 2106.09685, eq. 3)

    alpha: twice the rank if None. dropout: of x on its way to A. targets: names of linear modules, or how they end
    ('q_proj'); all but the output layer if empty.
    """

    def __init__(
        self,
        *,
        rank: PositiveInt = 8,
        alpha: Positive | None = None,
        dropout: Fraction = 0.0,
        targets: tuple[str, ...] = (),
    ) -> None:
        self.rank, self.alpha, self.dropout, self.targets = rank, 2.0 * rank if alpha is None else alpha, dropout, targets
        self.trainable: list[nn.Parameter] = []

    def apply(self, module: nn.Module) -> None:
        self.trainable = attach(module, self.rank, self.alpha, self.dropout, self.targets)

    def prepare(self, model: nn.Module, examples: PairedExamples, context: Context) -> None:
        """Draws A from the run's seed, with the distribution of peft."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            for _, layer in lora_layers(model):
                drawn = torch.empty(layer.lora_A[NAME].weight.shape)
                nn.init.kaiming_uniform_(drawn, a=5**0.5)
                layer.lora_A[NAME].weight.data.copy_(drawn)

    def fold(self, module: nn.Module) -> None:
        fold(module, self.trainable)

    def fold_into(self, module: nn.Module, whole: nn.Module) -> None:
        """Add what the adapters of `module` have learnt to the weights of `whole`, the same network without adapters."""
        fold_into(module, whole)


def attach(module: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> list[nn.Parameter]:
    """Put LoRA layers into `module`, in place; gives the parameters that were trainable before, for `fold`."""
    if next(lora_layers(module), None) is not None:
        raise TilthError("the model already has adapters", hint="Fold them into its weights first.")
    names = [name for name in linear_names(module) if not targets or _meant(name, targets)]
    if not names:
        raise TilthError(
            f"no linear module is called, or ends in, {' or '.join(map(repr, targets)) or 'anything'}",
            where="adapter.targets",
            hint=f"There are {', '.join(sorted({name.rsplit('.', 1)[-1] for name in linear_names(module)})) or 'none'}.",
        )
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    transposed = any(isinstance(module.get_submodule(name), Conv1D) for name in names)
    config = LoraConfig(r=rank, lora_dropout=dropout, target_modules=names, fan_in_fan_out=transposed, bias="none")
    config.lora_alpha = alpha  # type: ignore[assignment]  # a number like any other, though peft calls it an integer
    inject_adapter_in_model(config, module)
    return trainable


@torch.no_grad()
def fold(module: nn.Module, trainable: Sequence[nn.Parameter]) -> None:
    """Add what the adapters have learnt to the weights below them and take the adapters away; `trainable` train again."""
    for name, layer in list(lora_layers(module)):
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
    for parameter in trainable:
        parameter.requires_grad_(True)


@torch.no_grad()
def fold_into(module: nn.Module, whole: nn.Module) -> None:
    """W <- W + (alpha / rank) * B A in `whole`, with the adapters of `module`: summed in float32, rounded once to what W is stored in.

    For weights in `module` that are not those in `whole`: quantised ones, say.
    """
    for name, layer in lora_layers(module):
        base: Any = whole.get_submodule(name)
        learnt = layer.get_delta_weight(NAME).to(base.weight.device)
        transposed = isinstance(base, Conv1D) and not layer.fan_in_fan_out
        base.weight.add_(learnt.t() if transposed else learnt)


def lora_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer of every adapter in `module`."""
    return ((name, part) for name, part in module.named_modules() if isinstance(part, LoraLayer))


def _meant(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
