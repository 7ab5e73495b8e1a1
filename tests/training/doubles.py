"""A small language-like task: everything fit meets (masks, dropout, tied weights, buffers, counts that vary)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tilth.contracts import Batch, Loss, Noise, Objective

VOCABULARY, LENGTH, WIDTH = 13, 6, 8
# Of a token in `Network`, forward and backward: four linear layers of two blocks and the output layer, three products each.
FLOPS = 3 * 2 * (4 * WIDTH * 2 * WIDTH + WIDTH * VOCABULARY)


class Sequences:
    """Example i is a sequence made from i; a position-dependent share of its targets is masked out.

    rows: example i was made from rows i and i + 1000. Those in `broken` have weights that make the loss infinite.
    """

    def __init__(self, count: int, broken: tuple[int, ...] = (), masked: float = 0.3) -> None:
        self.tokens = np.random.default_rng(0).integers(0, VOCABULARY, (count, LENGTH))
        self.broken, self.masked = np.array(broken, dtype=np.int64), masked
        self.drawn: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        self.drawn.append(indices)
        ids = torch.from_numpy(self.tokens[indices])
        labels = ids.clone()
        labels[torch.from_numpy(noise.uniform("mask", LENGTH) < self.masked)] = -100
        scale = torch.from_numpy(np.where(np.isin(indices, self.broken), np.inf, 1.0).astype(np.float32))
        return Batch(input_ids=ids, labels=labels, scale=scale, tokens=ids.numel(), samples=len(indices))

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return [np.array([index, index + 1000]) for index in indices]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Network(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.embed(ids))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Next(Objective):
    """Next-token cross-entropy over the targets that are left; counts its steps in a buffer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Loss:
        logits = self.model(batch.input_ids)[:, :-1]
        targets = batch.labels[:, 1:]
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * batch.scale[:, None]
        count = (targets != -100).sum()
        total = each.sum() / count
        return Loss(total, count=count, entropy=total)

    def after_step(self, step: int) -> None:
        self.steps.fill_(step)


def objective(dropout: float = 0.1) -> Next:
    torch.manual_seed(7)
    return Next(Network(dropout))


def weights(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in objective.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bitwise."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
