"""Task vector negation: learn the forget set once more, then go as far the other way.

Notable: the training is the one loop's, resumable like any; afterwards nothing but arithmetic on the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor

from tilth.contracts import Edit, method
from tilth.pretrain.text.causal import Causal
from tilth.registry import NonNegative
from tilth.training.loop import fit
from tilth.unlearn.task import Task


@torch.no_grad()
def negate(weights: Iterable[Tensor], tuned: Iterable[Tensor], alpha: float) -> Tensor:
    """weights <- weights - alpha * (tuned - weights), in place; gives the norm of the task vector, tuned - weights: a scalar."""
    square: list[Tensor] = []
    for weight, learnt in zip(weights, tuned, strict=True):
        vector = learnt.to(weight.device, torch.float32) - weight.float()
        weight.copy_(weight.float() - alpha * vector)
        square.append(vector.square().sum(dtype=torch.float64))
    return torch.stack(square).sum().sqrt()


@method("unlearn", "task_vector", systems=[56])
class TaskVector(Edit):
    """theta <- theta - alpha * (theta_ft - theta)   (arXiv 2212.04089, section 2; as a baseline in arXiv 2411.00204)

    theta_ft: a copy further trained on the forget set with the stage's `training` and `budget`. Calculated in float32. The retain set
    is not used.

    Metrics: steps, loss (of the fine-tuning), vector_norm (Frobenius norm of theta_ft - theta).
    """

    def __init__(self, *, alpha: NonNegative = 1.0) -> None:
        self.alpha = alpha

    def __call__(self, task: Task) -> dict[str, float]:
        model, context = task.text_model.model, task.context
        tuned = Causal(deepcopy(model))
        fitted = fit(
            tuned, task.going,
            training=task.training, budget=task.budget, folder=context.folder, seed=context.seed, progress=context.progress,
        )  # fmt: skip
        norm = negate(model.parameters(), tuned.model.parameters(), self.alpha)
        return {"steps": float(fitted.steps), "loss": fitted.loss, "vector_norm": norm.item()}
