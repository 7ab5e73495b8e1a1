"""How far a figure over examples could be off: bootstrap intervals.

Notable: examples are drawn again, groups apart from each other; a difference between two models is taken over the same
examples for both, so what makes an example hard for both does not blur it. An interval speaks of other examples of the
same kind, never of other training runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
Statistic = Callable[..., float]


@dataclass(frozen=True)
class Estimate:
    """value over all examples; low, high: the 95 % interval, None where there is none; count: examples."""

    value: float
    low: float | None
    high: float | None
    count: int

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def mean(values: np.ndarray) -> float:
    """The mean over examples."""
    return float(values.mean())


def estimate(
    statistic: Statistic, samples: Sequence[np.ndarray], *, interval: bool = True, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """statistic(*samples) and its percentile interval (Efron, 1979): 2.5 to 97.5 % of its values over resampled examples.

    samples: per-example values, one array (examples, ...) per group; groups are resampled apart. No interval below two examples.
    """
    return _estimate(lambda drawn: statistic(*drawn), [(group,) for group in samples], interval, resamples, seed)


def difference(
    statistic: Statistic,
    samples: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """statistic(*samples) - statistic(*others) where both are of the same examples in the same order, drawn together."""

    def both(drawn: list[np.ndarray]) -> float:
        return statistic(*drawn[::2]) - statistic(*drawn[1::2])

    return _estimate(both, list(zip(samples, others, strict=True)), True, resamples, seed)


def _estimate(
    of: Callable[[list[np.ndarray]], float], groups: Sequence[tuple[np.ndarray, ...]], interval: bool, resamples: int, seed: int
) -> Estimate:
    """Each group is one or more arrays over the same examples."""
    value = float(of([array for group in groups for array in group]))
    count = min(len(group[0]) for group in groups)
    if not interval or count < 2:
        return Estimate(value, None, None, count)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen: list[np.ndarray] = []
        for group in groups:
            rows = generator.integers(0, len(group[0]), len(group[0]))
            chosen += [array[rows] for array in group]
        drawn.append(of(chosen))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), count)
