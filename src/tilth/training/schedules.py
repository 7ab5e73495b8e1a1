"""Schedules of the learning rate: pure functions of (step, steps), so resuming needs no state.

Notable: `step` is the number of updates already made, 0 ... steps - 1 in training; the first update is never at rate 0, the
peak is reached right after warm-up and `final` at step == steps. Steps outside are clamped.
"""

from __future__ import annotations

import math

from tilth.contracts import Schedule, method
from tilth.registry import Fraction, NonNegative


def as_steps(amount: float, steps: int) -> int:
    """A length given as a share of all steps (below 1) or as a number of steps (1 or more)."""
    return min(steps, round(amount * steps if amount < 1 else amount))


def _warm_up(step: int, steps: int, warmup: float) -> tuple[float, float]:
    """(factor of the warm-up, share of the remaining steps that have passed)."""
    length = as_steps(warmup, steps)
    factor = min(1.0, (step + 1) / (length + 1))
    return factor, min(1.0, max(0.0, (step - length) / max(1, steps - length)))


@method("schedule", "constant")
class Constant(Schedule):
    """1 after a linear warm-up. warmup: share of all steps if below 1, otherwise steps."""

    def __init__(self, *, warmup: NonNegative = 0.0) -> None:
        self.warmup = warmup

    def __call__(self, step: int, steps: int) -> float:
        return _warm_up(step, steps, self.warmup)[0]


@method("schedule", "linear")
class Linear(Schedule):
    """Linear warm-up to 1, then linear to `final`."""

    def __init__(self, *, warmup: NonNegative = 0.02, final: Fraction = 0.0) -> None:
        self.warmup, self.final = warmup, final

    def __call__(self, step: int, steps: int) -> float:
        factor, passed = _warm_up(step, steps, self.warmup)
        return factor * (1 - (1 - self.final) * passed)


@method("schedule", "cosine")
class Cosine(Schedule):
    """Linear warm-up to 1, then half a cosine to `final` (arXiv 1608.03983, eq. 5, without restarts)."""

    def __init__(self, *, warmup: NonNegative = 0.02, final: Fraction = 0.1) -> None:
        self.warmup, self.final = warmup, final

    def __call__(self, step: int, steps: int) -> float:
        factor, passed = _warm_up(step, steps, self.warmup)
        return factor * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * passed)))


@method("schedule", "warmup_stable_decay")
class WarmupStableDecay(Schedule):
    """Linear warm-up, a plateau at 1, then a cooldown to `final` along 1 - sqrt(share passed) (arXiv 2405.18392, sec. 3).

    warmup and decay: shares of all steps if below 1, otherwise steps.
    """

    def __init__(self, *, warmup: NonNegative = 0.02, decay: NonNegative = 0.2, final: Fraction = 0.0) -> None:
        self.warmup, self.decay, self.final = warmup, decay, final

    def __call__(self, step: int, steps: int) -> float:
        factor, _ = _warm_up(step, steps, self.warmup)
        length = as_steps(self.decay, steps)
        passed = min(1.0, max(0.0, (step - (steps - length)) / max(1, length)))
        return factor * (self.final + (1 - self.final) * (1 - math.sqrt(passed)))
