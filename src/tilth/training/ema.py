"""An exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """average <- d * average + (1 - d) * weights after every step, with d = min(decay, (1 + step) / (10 + step)).

    The rising d (as in TensorFlow's ExponentialMovingAverage) keeps the initial weights from lingering. Trainable
    parameters only; `values` are in the order of `names`.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.names = [name for name, _ in named]
        self.weights: list[Tensor] = [parameter.detach() for _, parameter in named]
        self.values = [weight.clone() for weight in self.weights]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the model's weights; twice is as before, bit for bit."""
        for weight, value in zip(self.weights, self.values, strict=True):
            kept = weight.clone()
            weight.copy_(value)
            value.copy_(kept)
