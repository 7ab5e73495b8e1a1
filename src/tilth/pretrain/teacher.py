"""A network that follows another as the moving average of its weights: the teacher of self-distillation, the key encoder of MoCo.

Notable: the average is taken on each process's own part of the weights, so it costs no communication where both networks are
sharded alike (FSDP2 shards equal modules equally); the teacher is an ordinary submodule, so checkpoints hold it.
"""

from __future__ import annotations

import copy
from math import cos, pi
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tilth.training.parallel import local


class Teacher(nn.Module):
    """A copy of `network` that has no gradients and moves only when it is told to `follow`.

    It drops nothing: dropout and stochastic depth are off in it at all times (as in DINO, arXiv 2104.14294). Batch norms normalise
    by the batch while training, as the student's do. Copy a network as it is when training begins: in an objective's constructor.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.network.requires_grad_(False)
        self.train(network.training)

    def train(self, mode: bool = True) -> Teacher:
        """Only batch norms know the difference."""
        super().train(False)
        self.training = mode
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def forward(self, *given: Any, **named: Any) -> Any:
        """What the copy makes of this; no gradient passes."""
        return self.network(*given, **named)

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """weights <- momentum * weights + (1 - momentum) * those of `network`; buffers become those of `network`.

        To be called in `Objective.after_step`, with the network this one was copied from.
        """
        own = [local(parameter.detach()) for parameter in self.network.parameters()]
        torch._foreach_lerp_(own, [local(parameter.detach()) for parameter in network.parameters()], 1 - momentum)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


def momentum(step: int, steps: int | None, start: float, end: float = 1.0) -> float:
    """Momentum after optimiser step `step` (from 1): `start` rising to `end` as half a cosine over `steps`, then `end`.

    end - (end - start) (cos(pi step / steps) + 1) / 2, which for end = 1 is that of BYOL (arXiv 2006.07733, section 3.2). steps:
    how long it rises; None: `start` for good. An objective does not know how long its run is, so this is a setting of its own
    (`momentum_steps`), and a pure function of the step, so resuming needs no state.
    """
    if steps is None:
        return start
    return end - (end - start) * (cos(pi * min(step / steps, 1.0)) + 1) / 2
