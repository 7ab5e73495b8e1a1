"""Neuron Adjust: a skill is moved out of the pre-activations of the neurons that it moves most.

Notable: the draw that decides is a hash of the neuron and of the pre-activation itself, so what a prompt gives depends neither on
the other rows of its batch, nor on padding, nor on cached keys and values; only the chosen neurons are computed with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tilth.backbones.locations import FeedForward, feed_forwards
from tilth.contracts import Guard, method
from tilth.errors import TilthError
from tilth.noise import key
from tilth.registry import Fraction
from tilth.unlearn.neurons import token_moments
from tilth.unlearn.task import Task

_CELLS = 256  # to a standard deviation: equal draws within one, so that rounding does not redraw
_DRAWS = 2**12  # different values of xi
_FLOOR = 1e-6


@method("unlearn", "neuron_adjust", systems=[74])
class NeuronAdjust(Guard):
    """u' = 2 mu_r - v,  v = (u - mu_f) s_r / s_f + mu_r,  where p_r(u) <= p_f(u) and xi >= p_r / (p_r + p_f)   (arXiv 2503.21730)

    u: pre-activation of a feed-forward neuron, i.e. an output of the gate projection (the only way in, without gating).
    mu_f, s_f, mu_r, s_r: its mean and standard deviation over tokens of the forget and of the retain set; p_f, p_r: the normal
    densities they make; xi: uniform in [0, 1). Under the forget law u' has the retain set's mean and deviation, in reversed
    order. Elsewhere u' = u. Neurons: the `share` of all those of `layers` pooled with the greatest mu_f - mu_r, signed, as
    in the official code. layers: block numbers, negative ones from the last; None: all blocks.

    Acts on every prompt: the density of each single token decides. Hooks only, no weight is changed.
    Deviates from the official code, which takes mu_f for s_f and variances for deviations, in using deviations, and in
    drawing xi for each element instead of one for each row of a batch.
    """

    def __init__(self, *, share: Fraction = 0.03, layers: Sequence[int] | None = None, seed: int = 0) -> None:
        self.share, self.layers, self.seed = share, layers, seed
        self.adjusted: dict[int, Laws] = {}

    def fit(self, task: Task) -> dict[str, float]:
        if task.staying is None:
            task.retained()
        assert task.staying is not None
        model = task.text_model.model
        chosen = chosen_layers(feed_forwards(model), self.layers)
        gates = [part.gate for part in chosen]
        forget, retain = (token_moments(model, gates, examples, "output") for examples in (task.going, task.staying))
        distance = [one.mean.cpu() - other.mean.cpu() for one, other in zip(forget, retain, strict=True)]
        for part, neurons, one, other in zip(chosen, largest(distance, self.share), forget, retain, strict=True):
            if len(neurons):
                laws = (values.cpu()[neurons] for values in (one.mean, one.spread, other.mean, other.spread))
                self.adjusted[part.layer] = Laws(neurons, *laws)
        return {"neurons": float(sum(len(laws.neurons) for laws in self.adjusted.values()))}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{layer}.{name}": value for layer, laws in self.adjusted.items() for name, value in vars(laws).items()}
        return tensors, {"layers": list(self.adjusted)}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: Any) -> None:
        names = Laws.__dataclass_fields__
        self.adjusted = {layer: Laws(*(tensors[f"{layer}.{name}"] for name in names)) for layer in facts["layers"]}

    def flags(self, text_model: Any, prompts: Sequence[str]) -> np.ndarray:
        return np.full(len(prompts), bool(self.adjusted))

    @contextmanager
    def acting(self, text_model: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for part in feed_forwards(text_model.model):
                if part.layer in self.adjusted:
                    stack.callback(part.gate.register_forward_hook(self.hook(part)).remove)
            yield

    def hook(self, part: FeedForward) -> Any:
        """A forward hook for the gate projection of one block."""
        laws = self.adjusted[part.layer].to(part.gate.weight.device)  # type: ignore[arg-type]
        rule = laws.rule(self.seed, part.layer)

        def adjust(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            u = output[..., laws.neurons].float()
            return output.index_copy(-1, laws.neurons, rule.adjust(u, rule.bounds[rule.draws(u)]).to(output.dtype))

        return adjust


@dataclass(frozen=True)
class Laws:
    """neurons (n,): numbers of the neurons of one block; mean and deviation of each under both sets, float32 (n,)."""

    neurons: Tensor
    forget_mean: Tensor
    forget_spread: Tensor
    retain_mean: Tensor
    retain_spread: Tensor

    def to(self, device: torch.device) -> Laws:
        return Laws(*(value.to(device) for value in vars(self).values()))

    def rule(self, seed: int = 0, layer: int = 0) -> Rule:
        """What the laws say to do with a pre-activation, its constants worked out."""
        forget, retain = self.forget_spread.clamp(min=_FLOOR), self.retain_spread.clamp(min=_FLOOR)
        half = 0.5**0.5
        numbers = [
            (int(key(seed, f"{layer}/{neuron}")), int(key(seed, f"{layer}/{neuron}+"))) for neuron in self.neurons.tolist()
        ]
        signed = torch.tensor([[one - 2**63, (other - 2**63) | 1] for one, other in numbers], dtype=torch.int64).reshape(-1, 2)
        xi = (torch.arange(_DRAWS, device=retain.device) + 0.5) / _DRAWS
        return Rule(
            forget_scale=half / forget,
            forget_shift=-half * self.forget_mean / forget,
            retain_scale=half / retain,
            retain_shift=-half * self.retain_mean / retain,
            constant=(forget / retain).log(),
            slope=-retain / half,
            mean=self.retain_mean,
            cells=_CELLS / retain,
            salt=signed[:, 0].to(retain.device),
            factor=signed[:, 1].to(retain.device),
            bounds=bound_of(xi),
        )


class Rule(NamedTuple):
    """scale, shift: (u - mu) / (s sqrt 2) = scale u + shift under a law; all (n,) but bounds (draws,): what each draw asks of the ratio."""

    forget_scale: Tensor
    forget_shift: Tensor
    retain_scale: Tensor
    retain_shift: Tensor
    constant: Tensor
    slope: Tensor
    mean: Tensor
    cells: Tensor
    salt: Tensor
    factor: Tensor
    bounds: Tensor

    def log_ratio(self, u: Tensor, forget: Tensor | None = None) -> Tensor:
        """log p_r(u) - log p_f(u), u (..., n); forget: u as `standardised` if that is known."""
        forget = self.standardised(u) if forget is None else forget
        retain = torch.addcmul(self.retain_shift, u, self.retain_scale)
        return torch.addcmul(self.constant, forget - retain, forget + retain)

    def standardised(self, u: Tensor) -> Tensor:
        """(u - mu_f) / (s_f sqrt 2)."""
        return torch.addcmul(self.forget_shift, u, self.forget_scale)

    def mapped(self, forget: Tensor) -> Tensor:
        """2 mu_r - v of what is `standardised`: put into the retain law, and reflected."""
        return torch.addcmul(self.mean, forget, self.slope)

    def adjust(self, u: Tensor, bound: Tensor) -> Tensor:
        """u' where log p_r / p_f is at most the bound, u elsewhere: (..., n); bound: `bound_of` a draw."""
        forget = self.standardised(u)
        return torch.where(self.log_ratio(u, forget) <= bound, self.mapped(forget), u)

    def draws(self, u: Tensor) -> Tensor:
        """Numbers below _DRAWS, each as likely, functions of neuron and pre-activation: (..., n).

        Multiply-shift hashing (Dietzfelbinger et al., Journal of Algorithms 25(1), 1997): the top bits of factor * cell + salt.
        """
        return (torch.addcmul(self.salt, (u * self.cells).round().long(), self.factor) >> 52) & (_DRAWS - 1)


def bound_of(xi: Tensor) -> Tensor:
    """What p_r <= p_f and xi >= p_r / (p_r + p_f) ask of log(p_r / p_f): to be at most this."""
    return xi.logit().clamp(max=0.0)


def largest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Of each block's scores (neurons,) the numbers of those among the highest `share` of all blocks together."""
    pooled = torch.cat(list(scores))
    best = pooled.topk(round(share * len(pooled))).indices.sort().values
    ends = torch.tensor([len(part) for part in scores]).cumsum(0).tolist()
    return [best[(best >= end - len(part)) & (best < end)] - (end - len(part)) for part, end in zip(scores, ends, strict=True)]


def chosen_layers(parts: list[FeedForward], layers: Sequence[int] | None) -> list[FeedForward]:
    """The blocks a setting names, in order."""
    if layers is None:
        return parts
    wrong = [layer for layer in layers if not -len(parts) <= layer < len(parts)]
    if wrong:
        raise TilthError(
            f"the model has no block {wrong[0]}", hint=f"It has {len(parts)}: 0 to {len(parts) - 1}, or -1 for the last."
        )
    return [parts[number] for number in sorted({layer % len(parts) for layer in layers})]
