"""Optimisers: torch's own, with the parameters grouped as usual."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import nn

from tilth.contracts import method
from tilth.errors import TilthError
from tilth.registry import NonNegative, Positive

Beta = Annotated[float, Ge(0), Lt(1)]


@method("optimiser", "adamw")
class AdamW(torch.optim.AdamW):
    """AdamW (arXiv 1711.05101), fused. decay: 'matrices' leaves norms, biases and embeddings alone, 'all' spares nothing.

    An output layer tied to the embeddings counts as embeddings. Only parameters that require a gradient are taken.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        /,
        *,
        betas: tuple[Beta, Beta] = (0.9, 0.95),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.1,
        decay: Literal["matrices", "all"] = "matrices",
    ) -> None:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise TilthError("nothing in this model can be trained: every parameter is frozen")
        spared = set() if decay == "all" else _spared(module)
        groups = [
            {"params": [p for p in parameters if p not in spared], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p in spared], "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=True)


def _spared(module: nn.Module) -> set[torch.Tensor]:
    """Norms and biases (fewer than two dimensions), embedding tables, and what a module names in `undecayed`."""
    spared: set[torch.Tensor] = {parameter for parameter in module.parameters() if parameter.ndim < 2}
    for part in module.modules():
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            spared.add(part.weight)
        if named := getattr(part, "undecayed", ()):
            own = dict(part.named_parameters())
            spared.update(own[name] for name in named if name in own)
    return spared
