"""One figure of an audit: from which per-example values it is made, and what a model that still knows would show.

Notable: a figure about the forget set is judged against the gold model's over the same examples, one about the retain set
against the model before; where there is nobody to judge by, the figure stands and the judgement says what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilth.evaluate.bootstrap import Estimate, Statistic, difference, estimate, mean

MODEL, BARE, BEFORE, GOLD = "model", "without guard", "before", "gold"
Samples = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Result:
    """What a benchmark gave for one model."""

    metrics: Mapping[str, float]
    details: Mapping[str, list[Any]]

    def values(self, column: str, part: str | None = None) -> np.ndarray:
        """Per-example values of a column (of the rows whose 'set' is `part`), rows without a value left out: (examples,)."""
        cells = self.details.get(column, [])
        if part is not None:
            cells = [cell for cell, name in zip(cells, self.details["set"], strict=True) if name == part]
        return np.array([cell for cell in cells if cell is not None], dtype=np.float64)


@dataclass(frozen=True)
class Measure:
    """name, title, meaning: for people. samples: per-example values, one array per group; any of them empty: no such figure.

    statistic: of the groups; with `against_gold` it takes the gold model's groups behind the model's own. about: which set the figure
    speaks of. knows: 1 where a larger figure means that more is known, -1 where a smaller one does, 0 where neither can be said.
    ideal: what the figure of a model that never saw the forget set is, in words, where that is known without a gold model.
    reads: what a figure that already is a comparison with gold says, as a sentence.
    """

    name: str
    title: str
    meaning: str
    samples: Callable[[Result], Samples]
    statistic: Statistic = mean
    about: Literal["forget", "retain", "neither"] = "forget"
    knows: Literal[1, 0, -1] = 1
    against_gold: bool = False
    interval: bool = True
    ideal: str = ""
    reads: Callable[[float], str] | None = None

    def groups(self, result: Result | None) -> Samples | None:
        """The values; None where there are none."""
        found = self.samples(result) if result is not None else ()
        return found if found and all(len(group) for group in found) else None

    def of(self, result: Result | None, gold: Result | None) -> Estimate | None:
        """The figure of one model; None where it cannot be had."""
        mine, others = self.groups(result), self.groups(gold)
        if mine is None or (self.against_gold and others is None):
            return None
        groups = (*mine, *(others or ())) if self.against_gold else mine
        return estimate(self.statistic, groups, interval=self.interval)

    def between(self, result: Result | None, other: Result | None) -> Estimate | None:
        """The figure of one model minus that of another over the same examples; None where one of them has none."""
        mine, others = self.groups(result), self.groups(other)
        if self.against_gold or mine is None or others is None or [len(a) for a in mine] != [len(b) for b in others]:
            return None
        return difference(self.statistic, mine, others) if self.interval else None


@dataclass(frozen=True)
class Judged:
    """verdict: 'remains', 'like gold', 'below gold', 'unlike gold', 'fell', 'did not fall', 'kept', 'lost', 'open'; sentence: the same for people."""

    verdict: str
    sentence: str
    difference: Estimate | None = None


def judge(measure: Measure, results: Mapping[str, Result], who: str) -> Judged:
    """What a figure of `who` (the model, or the model without its guard) says beside those of gold and before."""
    mine, gold, before = results.get(who), results.get(GOLD), results.get(BEFORE)
    if measure.against_gold and measure.reads is not None and (found := measure.of(mine, gold)) is not None:
        return Judged("open", measure.reads(found.value))
    if measure.about == "neither" or measure.against_gold:
        return Judged("open", "")
    if measure.about == "retain":
        gap = measure.between(mine, before)
        if gap is None or gap.low is None or gap.high is None:
            return Judged("open", "Whether anything was lost cannot be said without the model before." if before is None else "")
        if gap.high * measure.knows < 0 and gap.low * measure.knows < 0:
            return Judged("lost", "Lower than before unlearning: something that was to stay was lost.", gap)
        return Judged("kept", "Not lower than before unlearning, as far as so many examples can tell.", gap)
    gap = measure.between(mine, gold)
    if gap is not None and gap.low is not None and gap.high is not None:
        low, high = sorted((gap.low * (measure.knows or 1), gap.high * (measure.knows or 1)))
        if not measure.knows and low * high > 0:
            return Judged("unlike gold", "Differs from a model that never saw the forget set, which it should match.", gap)
        if low > 0:
            return Judged("remains", "More is known than by a model that never saw the forget set.", gap)
        if high < 0:
            return Judged(
                "below gold",
                "Less than in a model that never saw the forget set, which can itself give away what was removed.",
                gap,
            )
        return Judged(
            "like gold", "No difference from a model that never saw the forget set, as far as so many examples can tell.", gap
        )
    fall = measure.between(mine, before)
    if gold is None and measure.knows and fall is not None and fall.low is not None and fall.high is not None:
        fell = max(fall.low * measure.knows, fall.high * measure.knows) < 0
        return Judged(
            "fell" if fell else "did not fall",
            ("Lower than before unlearning; " if fell else "Not lower than before unlearning; ")
            + "whether what is left is more than a model that never saw the forget set would show cannot be said without a gold model.",
            fall,
        )
    if measure.ideal:
        return Judged("open", f"Ideal: {measure.ideal}.")
    if gold is None:
        return Judged("open", "Whether this is much or little cannot be said without a gold model.")
    return Judged("open", "A single attack was run, so the figure has no interval.")
