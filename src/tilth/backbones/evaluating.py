"""Where a network that is looked at, not trained, computes, and in which mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def computing_device() -> torch.device:
    """The CUDA device of this process where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Within, the model is on the computing device (where it stays), every module in eval mode, without gradients; gives the
    device. Afterwards each module is in its own mode again.
    """
    device = computing_device()
    modes = [(module, module.training) for module in model.modules()]
    model.to(device).eval()
    try:
        with torch.no_grad():
            yield device
    finally:
        for module, training in modes:
            module.training = training
