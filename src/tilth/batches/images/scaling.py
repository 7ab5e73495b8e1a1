"""Radar channels in the scale a network meets: standardised, as they are, or brought to a range by what is found in them.

Notable: what a scaling must know it takes from each row as the row is read, without pixels that count for nothing; terrain is
never rescaled, only standardised.
"""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilth.contracts import method
from tilth.errors import TilthError
from tilth.registry import Positive

Values = NDArray[Any]


class Scaling(ABC):
    """standardised, terrain: whether the network standardises radar channels, and the terrain, by mean and deviation.

    rewrites: whether values are changed at rest; by: column whose value joins rows that are measured as one.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    standardised: ClassVar[bool] = False
    terrain: ClassVar[bool] = True
    rewrites: ClassVar[bool] = True
    by: str | None = None

    def measured(self, values: Values) -> Values:
        """values (channels, *size) of one row, NaN where a pixel does not count -> (channels, numbers); NaN where none does."""
        raise NotImplementedError

    def agreed(self, numbers: Values, groups: NDArray[np.int64], limits: Values) -> Values:
        """numbers (rows, channels, n) -> the same, rows of one group in agreement. limits: of each channel, or NaN."""
        return numbers

    def scaled(self, values: Values, numbers: Values) -> Values:
        """values (rows, channels, *size) in the new scale; numbers (rows, channels, n) as agreed."""
        raise NotImplementedError


@method("scaling", "standardise", systems=[6])
class Standardise(Scaling):
    """Values stay; the network takes the mean away and divides by the deviation of each channel."""

    standardised, rewrites = True, False


@method("scaling", "none", systems=[6])
class Plain(Scaling):
    """Values stay, those of the terrain too, and the network takes them as they are."""

    terrain, rewrites = False, False


@method("scaling", "min_max", systems=[6])
class MinMax(Scaling):
    """Smallest and largest value of each channel and date become the ends of `range`   (arXiv 2311.12056, min-max)

    by: column whose rows are measured together; None: each row by itself. What is clamped has the clamp for largest value, and a
    ratio of clamped channels has 1. Where rows have one value alone, it becomes the lower end. The smallest ratio is that of
    pixels, which in the paper's code is a ratio of smallest values.
    """

    def __init__(self, *, range: tuple[float, float] = (0.0, 1.0), by: str | None = "event") -> None:
        self.range, self.by = _checked(range), by

    def measured(self, values: Values) -> Values:
        """(channels, 2): smallest and largest."""
        return _of_known(values, lambda known: (known.min(), known.max()), 2)

    def agreed(self, numbers: Values, groups: NDArray[np.int64], limits: Values) -> Values:
        """The smallest and largest of a group, limits in place of the largest."""
        low, high = np.full((2, groups.max() + 1, numbers.shape[1]), np.nan)
        np.fmin.at(low, groups, numbers[..., 0])
        np.fmax.at(high, groups, numbers[..., 1])
        return np.stack([low, np.where(np.isnan(limits), high, limits)], -1)[groups]

    def scaled(self, values: Values, numbers: Values) -> Values:
        """As above."""
        return _between(values, numbers, self.range)


@method("scaling", "log", systems=[6])
class Log(Scaling):
    """Values shifted above 0 where they are not, their logarithm, and that between two of its percentiles, in `range`

    Of each row and channel by itself (arXiv 2311.12056's code, 'custom': a shift by the smallest value and 1e-7, the logarithm, a
    linear scaling that the last step undoes, and a stretch from the 2nd to the 98th percentile, which clips). Deviations: a
    channel is shifted by its own smallest value only where that is not above 0 (there: where the first channel's is not), and
    percentiles are of pixels that count. percentiles: [0, 100] clips nothing.
    """

    def __init__(
        self,
        *,
        range: tuple[float, float] = (0.0, 1.0),
        percentiles: tuple[float, float] = (2.0, 98.0),
        above: Positive = 1e-7,
    ) -> None:
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise TilthError(f"percentiles from {percentiles[0]} to {percentiles[1]}", where="scaling.log.percentiles")
        self.range, self.percentiles, self.above = _checked(range), percentiles, above

    def measured(self, values: Values) -> Values:
        """(channels, 3): the shift, and percentiles of the logarithm."""

        def of(known: Values) -> tuple[float, ...]:
            shift = self.above - known.min() if known.min() <= 0 else 0.0
            return shift, *np.percentile(np.log(known + shift), self.percentiles)

        return _of_known(values, of, 3)

    def scaled(self, values: Values, numbers: Values) -> Values:
        """As above; pixels that count for nothing may lie below the others and are clipped with them."""
        shift = np.nan_to_num(numbers[..., 0]).reshape(*numbers.shape[:2], *[1] * (values.ndim - 2))
        logarithm = np.log(np.maximum(values.astype(np.float64) + shift, self.above))
        return _between(logarithm, numbers[..., 1:], self.range).clip(min(self.range), max(self.range))


def _of_known(values: Values, of: Any, count: int) -> Values:
    found = np.full((len(values), count), np.nan)
    for number, channel in enumerate(values.reshape(len(values), -1)):
        if len(known := channel[~np.isnan(channel)].astype(np.float64)):
            found[number] = of(known)
    return found


def _between(values: Values, ends: Values, wanted: tuple[float, float]) -> Values:
    """values (rows, channels, *size) with ends (rows, channels, 2) brought to `wanted`; NaN: taken as 0 to 1."""
    low, high = (ends[..., i].reshape(*ends.shape[:2], *[1] * (values.ndim - 2)) for i in (0, 1))
    known = ~np.isnan(low)
    low, span = np.where(known, low, 0.0), np.where(known & (high > low), high - low, 1.0)
    found: Values = (values - low) / span * (wanted[1] - wanted[0]) + wanted[0]
    return found


def _checked(wanted: tuple[float, float]) -> tuple[float, float]:
    if wanted[0] == wanted[1]:
        raise TilthError(f"a range from {wanted[0]} to {wanted[1]} holds one value", where="scaling.range")
    return wanted
