"""RMU: push what the model thinks of the forget set onto a random direction, and hold it in place on the retain set.

Notable: works on the hidden states of one layer, so the output layer never runs; the frozen model's states are computed once
and come with the batch while they fit in `memory`. Only what leads up to that layer is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tilth.backbones.locations import blocks, feed_forwards
from tilth.backbones.states import last_states
from tilth.context import Context
from tilth.contracts import Batch, Loss, Objective, method
from tilth.errors import TilthError
from tilth.registry import NonNegative, NonNegativeInt, Positive, PositiveInt
from tilth.unlearn.pairs import PairedExamples, WithArrays
from tilth.unlearn.reference import frozen_copy, per_position

_DEPTH = 7 / 32  # the paper steers layer 7 of Zephyr's 32


@method("unlearn", "rmu")
class RMU(Objective):
    """L = mean |h(forget) - c u|^2 + alpha * mean |h(retain) - h_before(retain)|^2   (arXiv 2403.03218, section 4.1)

    h: hidden states behind block `layer` (None: as deep in proportion as the paper's), at every token of question and answer;
    means are over the hidden size, then over the tokens of an example, then over examples.
    u: a unit vector with entries drawn uniformly from [0, 1), the same for the whole run. c: steering_coefficient.
    Trained are the matrices that end the feed-forward parts of the last `layers` blocks up to `layer`; under an adapter, what it
    adds.
    Defaults are those of the official script; the paper uses c = 6.5 and alpha = 1200 for Zephyr-7B.
    memory: bytes the stored states of the retain set may take on disk; beyond it a frozen copy runs beside the model.

    Deviates from the paper in taking the mean over the hidden size, as its code does (a constant in the loss), and from
    the code in leaving padding out.

    batch.forget, batch.retain: input_ids, attention_mask (batch, tokens); retain, which may be None, with reference (tokens, hidden)
    """

    needs = ("reference",)
    target: Tensor

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        layer: NonNegativeInt | None = None,
        layers: PositiveInt = 3,
        steering_coefficient: Positive = 20.0,
        alpha: NonNegative = 100.0,
        memory: NonNegative = 2.0**31,
    ) -> None:
        super().__init__(model)
        depth = len(blocks(model))
        self.layer = int(_DEPTH * depth) if layer is None else layer
        if self.layer >= depth:
            raise TilthError(
                f"there is no block {self.layer}: the model has {depth}", where="rmu.layer", hint="Blocks count from 0."
            )
        self.alpha, self.memory = alpha, memory
        self.frozen: list[nn.Module] = []  # a list, so that it is not trained, moved or stored with the objective
        self.register_buffer("target", steering_coefficient * direction(model, seed=0))
        self.steering_coefficient = steering_coefficient
        trained = feed_forwards(model)[max(0, self.layer - layers + 1) : self.layer + 1]
        model.requires_grad_(False)
        for part in trained:
            if part.down.weight.is_floating_point():  # type: ignore[union-attr,operator]  # in 8 bit only an adapter trains
                part.down.weight.requires_grad_(True)  # type: ignore[union-attr]

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        """Draws the direction by the run's seed and keeps what the model thinks of the retain set before."""
        self.target.copy_(self.steering_coefficient * direction(self.model, context.seed))
        if examples.retain is None:
            return examples

        def compute(model: nn.Module, batch: Batch) -> Tensor:
            return states_at(model, batch, self.layer)[_inside(batch)]

        what = f"states behind block {self.layer}"
        stored = per_position(self.model, examples.retain, context, what, compute, _lengths, limit=self.memory)
        if stored is None:
            self.frozen = [frozen_copy(self.model)]
            context.progress.say("RMU: the states before are not stored; a frozen copy of the model runs at every step")
            return examples
        return PairedExamples(examples.forget, WithArrays(examples.retain, {"reference": stored}))

    def forward(self, batch: Batch) -> Loss:
        forget = self.distance(batch.forget, self.target)
        kept = forget.new_zeros(())
        if batch.retain is not None and self.alpha > 0:
            kept = self.distance(batch.retain, self.before(batch.retain))
        return Loss(forget + self.alpha * kept, count=len(batch.forget.input_ids), forget=forget, retain=kept)

    def distance(self, batch: Batch, target: Tensor) -> Tensor:
        """Mean squared distance of the batch's states to `target` (hidden,) or (tokens, hidden): a scalar."""
        inside = _inside(batch)
        states = states_at(self.model, batch, self.layer)[inside]
        each = (states - target).square().mean(1)
        weight = (1 / inside.sum(1, keepdim=True).clamp(min=1)).expand(inside.shape)[inside]
        return (each * weight).sum() / len(inside)

    def before(self, batch: Batch) -> Tensor:
        """The states of the tokens of `batch` before the first step: (tokens, hidden)."""
        if "reference" in batch:
            return batch.reference  # type: ignore[no-any-return]
        if not self.frozen:
            raise TilthError("RMU has no states to hold", hint="Call the objective's `prepare` before training, or use `forget`.")
        with torch.no_grad():
            return states_at(self.frozen[0].to(batch.input_ids.device), batch, self.layer)[_inside(batch)]


def direction(model: Any, seed: int) -> Tensor:
    """A unit vector with entries drawn uniformly from [0, 1): (hidden,)."""
    size = model.config.get_text_config().hidden_size
    drawn = torch.from_numpy(np.random.default_rng(seed).random(size, dtype=np.float32))
    return drawn / drawn.norm()


def states_at(model: Any, batch: Batch, layer: int) -> Tensor:
    """Hidden states behind block `layer` (from 0), in float32: (batch, tokens, hidden)."""
    found: list[Tensor] = []
    with _seen(blocks(model)[layer], found):
        last_states(model, batch)
    return found[0].float()


@contextmanager
def _seen(block: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """Within, what the block gives is added to `found`."""
    handle = block.register_forward_hook(lambda _, __, output: found.append(output[0] if isinstance(output, tuple) else output))
    try:
        yield
    finally:
        handle.remove()


def _inside(batch: Batch) -> Tensor:
    """Which positions are tokens: (batch, tokens) bool."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch.input_ids, dtype=torch.bool) if mask is None else mask.bool()


def _lengths(batch: Batch) -> np.ndarray:
    lengths: np.ndarray = _inside(batch).sum(1).numpy()
    return lengths
