"""Key-space detection: prompts whose last feed-forward key lies where the forgotten skill's keys lie are refused.

Notable: one key vector per prompt, its last token's, decides once, before anything is generated, so a long answer has no more
chances to be refused than a short one; how far the cube reaches is calibrated on prompts it was not made from, and both error
rates are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.evaluating import evaluating
from tilth.backbones.locations import FeedForward, feed_forwards
from tilth.contracts import Guard, method
from tilth.errors import TilthError
from tilth.noise import hashed_uniform
from tilth.registry import Fraction, NonNegative, PositiveInt
from tilth.unlearn.neuron_adjust import chosen_layers
from tilth.unlearn.neurons import watching
from tilth.unlearn.prompts import prompt_batches
from tilth.unlearn.scope import calibrated
from tilth.unlearn.task import Task

_FLOOR = 1e-6  # of a coordinate's deviation, relative to its mean: one that never varied demands equality


@method("unlearn", "key_space", systems=[74])
class KeySpace(Guard):
    """Refuses x where |k_i(x) - m_i| <= alpha k0 s_i for all i, in any of the layers   (arXiv 2503.21730, key space detection)

    k(x): the key (input of the way out of a feed-forward part) of the last token of prompt x. m, s: mean and unbiased
    deviation of each coordinate over forget prompts; k0 = max_n max_i |k_ni - m_i| / s_i, the smallest factor whose cube holds
    them all. alpha: None chooses it: `held_out` of the forget prompts take no part in m, s and k0, and alpha is the largest at
    which at most a share `false_alarms` of the retain prompts is refused, moved half way (on a logarithmic scale) to the next smaller
    one that any prompt is refused at; how many held-out prompts it misses is said. Given a number, all forget prompts make the cube.
    layers: block numbers, negative ones from the last; None: the one block that misses fewest held-out prompts (of equals the
    last), with a given alpha the last. probes: the most prompts of either set that are looked at. refusal: what a refused prompt is
    answered with.

    Deviates from the official code in the closed form of k0 (there a bisection), in testing every row of a batch, in deciding
    at the end of the prompt alone, and in looking for the block (there the last one).
    """

    def __init__(
        self,
        *,
        alpha: NonNegative | None = None,
        layers: Sequence[int] | None = None,
        held_out: Fraction = 0.25,
        false_alarms: Fraction = 0.01,
        probes: PositiveInt = 500,
        refusal: str = "Sorry, I cannot help with that.",
    ) -> None:
        if alpha is None and not 0 < held_out < 1:
            raise TilthError(
                "without 'alpha' some forget prompts must be held out, and some not", where="unlearn.key_space.held_out"
            )
        self.alpha, self.layers, self.probes, self.refusal = alpha, layers, probes, refusal
        self.held_out, self.false_alarms = held_out, false_alarms
        self.cubes: list[Cube] = []
        self.reach = alpha or 0.0
        self.numbers: list[int] = []

    def fit(self, task: Task) -> dict[str, float]:
        text_model, seed = task.text_model, task.context.seed
        parts = feed_forwards(text_model.model)
        if self.layers is not None or self.alpha is not None:
            parts = chosen_layers(parts, [-1] if self.layers is None else self.layers)
        forget = last_keys(text_model, parts, drawn(task.prompts("forget"), self.probes, seed))
        count = len(forget[0])
        if count < 4:
            raise TilthError(f"{count} forget prompts are too few to say where a skill's keys lie", hint="Give at least 4.")
        retained = task.retained() if self.alpha is None else task.retain
        retain = last_keys(text_model, parts, drawn(task.prompts("retain"), self.probes, seed)) if retained is not None else []
        making = count if self.alpha is not None else min(max(2, round((1 - self.held_out) * count)), count - 1)
        cubes = [Cube.around(keys[:making]) for keys in forget]
        fresh = [cube.extent(keys[making:]) for cube, keys in zip(cubes, forget, strict=True)]
        other = [cube.extent(keys) for cube, keys in zip(cubes, retain, strict=True)] if retain else []
        chosen = list(range(len(parts)))
        if self.alpha is None and self.layers is None:
            missed = [
                float((inside > self.calibrated(inside, out)).float().mean()) for inside, out in zip(fresh, other, strict=True)
            ]
            chosen = [min(chosen, key=lambda number: (missed[number], -number))]
        self.cubes, self.numbers = [cubes[number] for number in chosen], [parts[number].layer for number in chosen]
        near, far = (
            torch.stack([part[number] for number in chosen]).amin(0) if part else torch.empty(0) for part in (fresh, other)
        )
        self.reach = self.calibrated(near, far) if self.alpha is None else self.alpha
        found = {"alpha": self.reach, "probes": float(making), "layer": float(self.numbers[-1])}
        for name, inside, wrong in (("missed", near, False), ("false_alarms", far, True)):
            if len(inside):
                found[name] = float(((inside <= self.reach) == wrong).float().mean())
        return found

    def calibrated(self, forget: Tensor, retain: Tensor) -> float:
        """alpha, from the smallest ones at which held-out forget prompts and retain prompts are refused, each (prompts,)."""
        near, far = (-np.log(np.maximum(extents.numpy(), 1e-9)) for extents in (forget, retain))
        return float(np.exp(-calibrated(near, far, self.false_alarms)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            name: torch.stack([getattr(cube, name).cpu() for cube in self.cubes]) for name in ("centre", "spread", "factor")
        }
        return tensors, {"alpha": self.reach, "layers": self.numbers}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: Any) -> None:
        self.cubes = [Cube(*parts) for parts in zip(tensors["centre"], tensors["spread"], tensors["factor"], strict=True)]
        self.reach, self.numbers = float(facts["alpha"]), list(facts["layers"])

    def flags(self, text_model: Any, prompts: Sequence[str]) -> np.ndarray:
        if not self.reach:
            return np.zeros(len(prompts), dtype=bool)
        keys = last_keys(text_model, chosen_layers(feed_forwards(text_model.model), self.numbers), prompts)
        return (self.extents(keys) <= self.reach).numpy()

    def extents(self, keys: list[Tensor]) -> Tensor:
        """The smallest alpha at which each prompt is refused: (prompts,)."""
        return torch.stack([cube.extent(values) for cube, values in zip(self.cubes, keys, strict=True)]).amin(0)


@dataclass(frozen=True)
class Cube:
    """centre, spread (coordinates,); factor (): the smallest multiple of spread whose cube holds every vector it was made from."""

    centre: Tensor
    spread: Tensor
    factor: Tensor

    @classmethod
    def around(cls, keys: Tensor) -> Cube:
        """keys: (vectors, coordinates), at least two."""
        centre, spread = keys.mean(0), keys.std(0)
        spread = torch.maximum(spread, _FLOOR * centre.abs()).clamp(min=torch.finfo(spread.dtype).tiny ** 0.5)
        return cls(centre, spread, ((keys - centre).abs() / spread).max())

    def extent(self, keys: Tensor) -> Tensor:
        """The smallest alpha whose cube holds each of (vectors, coordinates): (vectors,)."""
        return ((keys - self.centre).abs() / self.spread).amax(1) / self.factor


def last_keys(text_model: Any, parts: Sequence[FeedForward], prompts: Sequence[str]) -> list[Tensor]:
    """The key of each prompt's last token in each of the parts: float32 (prompts, inner), on the CPU."""
    found: list[Tensor] = [torch.empty(0)] * len(parts)
    order = []
    collected: list[list[Tensor]] = [[] for _ in parts]
    with evaluating(text_model.model) as device:
        for batch in prompt_batches(text_model, prompts, device):
            order.append(batch.rows)
            last = batch.lengths - 1

            def told(number: int, values: Tensor, last: Tensor = last) -> None:
                rows = torch.arange(len(last), device=values.device)
                collected[number].append(values[rows, last.to(values.device)].float().cpu())

            with watching([part.down for part in parts], "input", told):
                text_model.model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    for number, keys in enumerate(collected):
        found[number] = torch.cat(keys)[back]
    return found


def drawn(prompts: list[str], most: int, seed: int) -> list[str]:
    """At most `most` of the prompts, in an order of the seed's."""
    order = np.argsort(hashed_uniform(seed, "key-space", np.arange(len(prompts))))
    return [prompts[row] for row in order[:most].tolist()]
