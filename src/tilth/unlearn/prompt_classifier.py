"""Does a prompt ask for what is to be forgotten? A small network on the model's own hidden states says.

Notable: the state of a prompt is the mean over its tokens alone, so padding on either side gives the same one; states are put to
mean 0 and deviation 1 before the network, because a few dimensions of a language model's are many times larger than the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.evaluating import evaluating
from tilth.unlearn.prompts import prompt_batches

_INNER = 256
_STEPS = 300
_LR = 1e-3


class PromptClassifier(nn.Module):
    """p(forget | z): Linear d-256, ReLU, dropout 0.1, Linear 256-256, ReLU, dropout 0.1, Linear 256-2 (arXiv 2505.13312).

    z (prompts, d): see `mean_states`; mean, spread (d,): of the training prompts.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.layers = nn.Sequential(
            nn.Linear(width, _INNER), nn.ReLU(), nn.Dropout(0.1),
            nn.Linear(_INNER, _INNER), nn.ReLU(), nn.Dropout(0.1),
            nn.Linear(_INNER, 2),
        )  # fmt: skip

    def forward(self, states: Tensor) -> Tensor:
        """Logits of (retain, forget): (prompts, 2)."""
        logits: Tensor = self.layers((states - self.mean) / self.spread)
        return logits

    @torch.no_grad()
    def probability(self, states: Tensor) -> Tensor:
        """Of forget: (prompts,)."""
        return self.eval()(states).softmax(-1)[:, 1]

    @classmethod
    def fit(cls, forget: Tensor, retain: Tensor, seed: int) -> PromptClassifier:
        """Trained with AdamW on all prompts at once, each class weighing the same. forget, retain: (prompts, d)."""
        states = torch.cat([forget, retain])
        labels = torch.cat([torch.ones(len(forget)), torch.zeros(len(retain))]).long()
        weight = len(labels) / 2 / torch.tensor([len(retain), len(forget)])
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            made = cls(states.shape[1])
            made.mean.copy_(states.mean(0))
            made.spread.copy_(states.std(0).clamp(min=1e-6))
            optimiser = torch.optim.AdamW(made.parameters(), lr=_LR)
            for _ in range(_STEPS):
                optimiser.zero_grad()
                F.cross_entropy(made.train()(states), labels, weight=weight).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return made.eval()


def mean_states(model: Any, input_ids: Tensor, attention_mask: Tensor, layer: int = -2) -> Tensor:
    """z = sum_j m_j h_j / sum_j m_j over the tokens of each row, of one of the layers: float32 (rows, d).

    layer -1 is the last one, -2 the penultimate. Padding may be on either side.
    """
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    said = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, output_hidden_states=True, use_cache=False
    )
    kept = attention_mask[:, :, None].float()
    states: Tensor = (said.hidden_states[layer].float() * kept).sum(1) / kept.sum(1)
    return states


def prompt_states(text_model: Any, prompts: Sequence[str]) -> Tensor:
    """The penultimate layer's mean state of each prompt: float32 (prompts, d), on the CPU."""
    found = torch.empty(len(prompts), text_model.model.config.get_text_config().hidden_size)
    with evaluating(text_model.model) as device:
        for batch in prompt_batches(text_model, prompts, device):
            states = mean_states(text_model.model, batch.input_ids, batch.attention_mask)
            found[torch.from_numpy(np.ascontiguousarray(batch.rows))] = states.cpu()
    return found
