"""Who's Harry Potter without training: the generic logits are computed while the model speaks, from it and a reinforced copy.

Notable: the model's weights stay as they are and both models are needed to generate; the copy reads with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.folder import TextModel
from tilth.batches.text.encoding import pad_token
from tilth.contracts import Batch, Guard, method
from tilth.errors import TilthError
from tilth.registry import NonNegative
from tilth.training.settings import Budget, Training
from tilth.unlearn.generic import generic_logits
from tilth.unlearn.harry_potter import REINFORCE, reinforced_copy
from tilth.unlearn.likelihood import answers
from tilth.unlearn.task import Task
from tilth.unlearn.uld import Subtraction


@method("unlearn", "generic_logits", systems=[28])
class GenericLogits(Guard):
    """logits = v_baseline - alpha * relu(v_reinforced - v_baseline) at every token   (arXiv 2310.02238 as run by arXiv 2407.06460)

    The reinforced copy is trained further on the forget set (reinforce, reinforce_budget) and kept whole beside the model. There is
    no dictionary, so names that both models are sure of stay; alpha is swept upward (MUSE chose 4 for news, 256 for books).
    Every prompt is answered with it.
    """

    def __init__(
        self, *, alpha: NonNegative = 5.0, reinforce: Training = REINFORCE, reinforce_budget: Budget = Budget(epochs=3)
    ) -> None:
        self.alpha, self.reinforce, self.reinforce_budget = alpha, reinforce, reinforce_budget
        self.reinforced: Any = None

    def fit(self, task: Task) -> dict[str, float]:
        self.reinforced = reinforced_copy(task.text_model.model, task, self.reinforce, self.reinforce_budget)
        return {"parameters": float(sum(parameter.numel() for parameter in self.reinforced.parameters()))}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.reinforced.named_parameters()), {}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: TextModel) -> None:
        self.reinforced = deepcopy(text_model.model).eval().requires_grad_(False)
        there = dict(self.reinforced.named_parameters())
        if {name: tensor.shape for name, tensor in there.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
            raise TilthError("the reinforced copy that is kept does not fit the model")
        for name, parameter in there.items():
            parameter.copy_(tensors[name])

    def flags(self, text_model: TextModel, prompts: Sequence[str]) -> np.ndarray:
        return np.ones(len(prompts), dtype=bool)

    def processors(self, text_model: TextModel) -> list[Any]:
        return [Subtraction(self.reinforced, self.combine, pad_token(text_model.tokenizer))]

    def adjust(self, logits: Tensor, text_model: TextModel, batch: Batch, where: Tensor) -> Tensor:
        with torch.no_grad():
            return self.combine(logits, answers(self.reinforced.to(logits.device), batch).logits)

    def combine(self, baseline: Tensor, reinforced: Tensor) -> Tensor:
        """`generic_logits` without a translation; both (..., vocabulary)."""
        return generic_logits(baseline, baseline, reinforced.to(baseline), self.alpha, "original")
