"""Stochastic gradient descent with momentum: torch's own."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import nn

from tilth.contracts import method
from tilth.errors import TilthError
from tilth.registry import NonNegative


@method("optimiser", "sgd")
class SGD(torch.optim.SGD):
    """Only parameters that require a gradient are taken."""

    def __init__(
        self, module: nn.Module, lr: float, /, *, momentum: Annotated[float, Ge(0), Lt(1)] = 0.9, weight_decay: NonNegative = 0.0
    ) -> None:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise TilthError("nothing in this model can be trained: every parameter is frozen")
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
