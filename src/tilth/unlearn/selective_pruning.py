"""Selective pruning: the neurons that a skill uses more than everything else does are cut off.

Notable: a neuron is cut by zeroing its value vector, so the pruned model is an ordinary one and costs nothing to run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilth.backbones.locations import feed_forwards
from tilth.contracts import Edit, method
from tilth.registry import Fraction
from tilth.unlearn.neuron_adjust import chosen_layers, largest
from tilth.unlearn.neurons import token_moments
from tilth.unlearn.task import Task


@method("unlearn", "selective_pruning", systems=[74])
class SelectivePruning(Edit):
    """importance_j = mean |k_j| over forget tokens / (mean |k_j| over retain tokens + 1e-8)   (arXiv 2403.01267; 2503.21730, baseline)

    k: the key of a feed-forward part, what its way out reads. The `share` of the neurons of `layers` (None: all blocks), pooled,
    with the greatest importance loses its value vectors: what they would write into the residual stream is 0.
    """

    def __init__(self, *, share: Fraction = 0.03, layers: Sequence[int] | None = None) -> None:
        self.share, self.layers = share, layers

    def __call__(self, task: Task) -> dict[str, float]:
        if task.staying is None:
            task.retained()
        assert task.staying is not None
        model = task.text_model.model
        parts = chosen_layers(feed_forwards(model), self.layers)
        downs = [part.down for part in parts]
        forget, retain = (
            token_moments(model, downs, examples, "input", absolute=True) for examples in (task.going, task.staying)
        )
        importance = [(one.mean / (other.mean + 1e-8)).cpu() for one, other in zip(forget, retain, strict=True)]
        cut = 0
        with torch.no_grad():
            for part, neurons in zip(parts, largest(importance, self.share), strict=True):
                part.values()[neurons.to(part.values().device)] = 0
                cut += len(neurons)
        return {"neurons": float(cut)}
