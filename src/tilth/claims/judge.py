"""Measured numbers against what was expected of them: pure, no files, no clock. The rules stand in docs/claims.md.

Notable: an expectation is met, not met, or undecided (None). The mean must pass the bound the recipe wrote down, and a 95 %
t interval over seeds must make its direction certain; running fewer seeds than the claim asks for can refute it and
cannot confirm it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from scipy import stats

from tilth.claim_spec import Expectation

Metrics = Mapping[str, Mapping[int, Mapping[str, float]]]
"""arm -> seed -> 'stage.metric' -> number"""

Verdict = Literal["holds", "fails", "inconclusive"]

CONFIDENCE = 0.95
_ROUNDING = 1e-9
"""0.85 - 0.8 passes 0.05, though not in binary."""


@dataclass(frozen=True)
class Judged:
    """An expectation and what was measured.

    measured: over seeds, the mean paired difference A - B, the geometric mean of the ratio A / B, or the mean level.
    interval: its 95 % t interval, None below two seeds or without a finite spread. per_seed: the same per seed.
    difference: the mean paired difference A - B, for ratios too; None for levels.
    met: True, False, or None while undecided; reason: why, in words.
    """

    expectation: Expectation
    measured: float | None
    interval: tuple[float, float] | None
    per_seed: dict[int, float]
    difference: float | None
    met: bool | None
    reason: str

    def plain(self) -> dict[str, Any]:
        """As it stands in an evidence file."""
        return {
            **self.expectation.model_dump(exclude_defaults=True),
            "sentence": self.expectation.sentence(),
            "form": self.expectation.form,
            "measured": self.measured,
            "difference": self.difference,
            "interval": list(self.interval) if self.interval else None,
            "per_seed": {str(seed): value for seed, value in self.per_seed.items()},
            "met": self.met,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Judgement:
    """verdict: 'holds' when all that is demanded is met, 'fails' when any of it is not, else 'inconclusive'."""

    verdict: Verdict
    judged: list[Judged]


def judge(metrics: Metrics, expect: Sequence[Expectation], *, seeds: int) -> Judgement:
    """Judge every expectation. metrics: arm -> seed -> name -> number; seeds: how many it takes to decide in favour."""
    ran = sorted({seed for by_seed in metrics.values() for seed in by_seed})
    judged = [_judge_one(metrics, expectation, ran, seeds) for expectation in expect]
    demanded = [one.met for one in judged if not one.expectation.reported]
    verdict: Verdict = "fails" if False in demanded else "holds" if demanded and all(demanded) else "inconclusive"
    return Judgement(verdict, judged)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values (Student's t); None below two values."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def _judge_one(metrics: Metrics, expectation: Expectation, ran: Sequence[int], seeds: int) -> Judged:
    absent = _absent(metrics, expectation, ran)
    if absent:
        return Judged(expectation, None, None, {}, None, False, absent)
    values = [[_value(metrics[arm][seed], expectation) for seed in ran] for arm in expectation.arms]
    if expectation.form == "level":
        per_seed, difference = values[0], None
    else:
        pairs = list(zip(*values, strict=True))
        if expectation.form == "ratio" and any(min(pair) < 0 or max(pair) == 0 for pair in pairs):
            return Judged(expectation, None, None, {}, None, False, "a ratio needs numbers above 0")
        differences = [a - b for a, b in pairs]
        ratios = [a / b if b else math.inf for a, b in pairs]
        per_seed, difference = ratios if expectation.form == "ratio" else differences, sum(differences) / len(differences)
    if any(math.isnan(value) for value in per_seed):
        return Judged(expectation, None, None, {}, None, False, "the difference of two infinite numbers is not a number")
    measured, interval = _centre(per_seed, logarithmic=expectation.form == "ratio")
    if math.isnan(measured):
        return Judged(
            expectation, None, None, dict(zip(ran, per_seed, strict=True)), None, False, "opposite infinities have no mean"
        )
    met, reason = _decide(expectation, per_seed, measured, interval, seeds)
    return Judged(expectation, measured, interval, dict(zip(ran, per_seed, strict=True)), difference, met, reason)


def _value(found: Mapping[str, float], expectation: Expectation) -> float:
    """What is compared, of one run."""
    return float(found[expectation.metric]) - (float(found[expectation.minus]) if expectation.minus is not None else 0.0)


def _absent(metrics: Metrics, expectation: Expectation, ran: Sequence[int]) -> str:
    """What is missing, in words; empty when every arm has a number for every seed."""
    if not ran:
        return "nothing was run"
    names = [expectation.metric] if expectation.minus is None else [expectation.metric, expectation.minus]
    for arm, seed, name in product(expectation.arms, ran, names):
        value = metrics.get(arm, {}).get(seed, {}).get(name)
        if value is None:
            return f"arm '{arm}' has no metric '{name}' in seed {seed}"
        if math.isnan(value):
            return f"'{name}' of arm '{arm}' is not a number in seed {seed}"
    return ""


def _centre(values: Sequence[float], *, logarithmic: bool) -> tuple[float, tuple[float, float] | None]:
    """Mean (geometric for ratios) and its interval, which needs finite values on the scale it is taken on."""
    with np.errstate(divide="ignore"):
        scaled = [float(value) for value in np.log(values)] if logarithmic else list(values)
    mean = sum(scaled) / len(scaled)
    interval = t_interval(scaled) if math.isfinite(mean) else None
    if logarithmic:
        return math.exp(mean), (math.exp(interval[0]), math.exp(interval[1])) if interval else None
    return mean, interval


def _decide(
    expectation: Expectation, per_seed: Sequence[float], measured: float, interval: tuple[float, float] | None, seeds: int
) -> tuple[bool | None, str]:
    ran = len(per_seed)
    if expectation.every_seed:
        failing = sum(not _passes(expectation, value) for value in per_seed)
        if failing:
            return False, f"not so in {failing} of {ran} seeds"
    elif not _passes(expectation, measured):
        return False, "the mean does not pass the bound"
    if ran < seeds:
        return None, f"{ran} of {seeds} seeds were run"
    if expectation.every_seed:
        return True, f"so in {ran} of {ran} seeds"
    if interval is None:
        return None, "one seed has no interval" if ran < 2 else "no interval: a value is infinite, or a ratio is 0"
    if not _certain(expectation, interval):
        return None, "the mean passes, but the interval does not exclude the opposite"
    return True, "the mean passes the bound and the interval makes the direction certain"


def _passes(expectation: Expectation, value: float) -> bool:
    """Whether a mean or one seed's value passes the bound. 'Higher' without a margin means higher, not equal."""
    line = _line(expectation)
    if expectation.form != "level" and line == _equality(expectation):
        return expectation.sign * (value - line) > 0
    return _beyond(expectation, value, line)


def _certain(expectation: Expectation, interval: tuple[float, float]) -> bool:
    """Whether the interval excludes the contrary: equality of the arms, or the bound itself where that is milder.

    A margin is asked of the mean, its direction of the interval: so the line is 0 (1 for ratios). A level has no other
    line than its bound; and 'at most this much worse' (by: -0.02, times: 0.98) is certain beyond the bound.
    """
    limit = interval[0] if expectation.sign > 0 else interval[1]
    line, equality = _line(expectation), _equality(expectation)
    if expectation.form == "level" or expectation.sign * (line - equality) < 0:
        return _beyond(expectation, limit, line)
    return expectation.sign * (limit - equality) > 0


def _line(expectation: Expectation) -> float:
    """Where on the scale of A - B, A / B or the level the bound lies: 'lower by 0.05' is -0.05."""
    return expectation.sign * expectation.bound if expectation.form == "difference" else expectation.bound


def _equality(expectation: Expectation) -> float:
    return 1.0 if expectation.form == "ratio" else 0.0


def _beyond(expectation: Expectation, value: float, line: float) -> bool:
    return expectation.sign * (value - line) >= -_ROUNDING * abs(line)
