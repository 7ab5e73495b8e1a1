"""Minimise a score that can only be asked for: two values a step, no gradient through what is scored.

Notable: the best point ever asked about is kept, since a step too long leads onto a plateau with no way back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-8


@dataclass(frozen=True)
class Found:
    """last: where the walk ended; best: the point asked about with the lowest score; path: [(point, its two scores' mean)]."""

    last: Tensor
    best: Tensor
    score: float
    path: list[tuple[Tensor, float]]


def zeroth_order(
    score: Callable[[Tensor], float],
    start: Tensor,
    *,
    rate: float,
    epsilon: float,
    least: float,
    steps: int,
    enough: float = float("-inf"),
    generator: torch.Generator | None = None,
) -> Found:
    """Minimise `score` over points of non-negative numbers (n,)   (SPSA; arXiv 2406.07933, section 3)

    Of one number: g = (s(x + eps) - s(max(x - eps, 1e-8))) / (2 eps), x <- max(x - rate * g, least). Of several: the two points
    lie along a random unit direction u, and x moves along it. Stops after `steps`, or when the lower of two scores is below
    `enough`.
    """
    point, best, lowest = start.clone(), start.clone(), float("inf")
    path = []
    for _ in range(steps):
        direction = torch.ones_like(point)
        if len(point) > 1:
            direction = torch.randn(len(point), generator=generator)
            direction = direction / direction.norm()
        tried = [(point + sign * epsilon * direction).clamp(min=_LEAST) for sign in (1, -1)]
        scores = [score(one) for one in tried]
        path.append((point.clone(), sum(scores) / 2))
        for one, value in zip(tried, scores, strict=True):
            if value < lowest:
                best, lowest = one, value
        if min(scores) < enough:
            break
        slope = (scores[0] - scores[1]) / (2 * epsilon)
        point = (point - rate * slope * direction).clamp(min=least)
    return Found(point, best, lowest, path)
