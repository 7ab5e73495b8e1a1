"""A random part of the rows, the same whatever their order.

Notable: a row is drawn by a hash of its id and the seed; so a share of 0.1 lies within a share of 0.2 of the same seed, and
adding rows does not change the fate of the others.
"""

import daft
import numpy as np
from daft import Expression, col, lit
from daft.functions import hash, when

from tilth.contracts import Step, method
from tilth.curate.frames import collect_kept, remove
from tilth.errors import TilthError
from tilth.registry import Fraction, NonNegativeInt, PositiveInt

_RANGE = 2**64


@method("curate", "sample")
class Sample(Step):
    """Keeps `count` of the rows, or a `fraction` of them: give one of the two.

    count: exactly so many (all, where there are fewer): those with the smallest hashes. fraction: each row with this
    probability. seed: null means the run's.
    """

    def __init__(
        self, *, count: PositiveInt | None = None, fraction: Fraction | None = None, seed: NonNegativeInt | None = None
    ) -> None:
        if (count is None) == (fraction is None):
            raise TilthError("sample needs either `count` or `fraction`", where="sample")
        self.count, self.fraction, self.seed = count, fraction, seed
        self.below: int | None = None if fraction is None else round(fraction * _RANGE)

    def fit(self, frame: daft.DataFrame) -> None:
        """For a count: find the hash below which so many rows lie."""
        if self.count is not None:
            drawn = np.sort(collect_kept(frame, draw=draw(self.seed))["draw"].to_numpy())
            self.below = int(drawn[self.count]) if self.count < len(drawn) else _RANGE

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        if self.below is None:
            raise RuntimeError("sample needs fit before it is applied")
        size = f"the {self.count} rows" if self.count is not None else f"the share of {self.fraction:g}"
        reason = lit(f"{self.name}: not among {size} drawn")
        return remove(frame, when(~drawn_below(draw(self.seed), self.below), reason).otherwise(lit(None)))


def draw(seed: int | None) -> Expression:
    """uint64, uniform: a hash of the row's id and the seed."""
    return hash(col("id"), seed=1 + (seed or 0))


def drawn_below(draws: Expression, limit: int) -> Expression:
    """draws < limit, for limits up to and including 2**64."""
    return lit(True) if limit >= _RANGE else draws < lit(np.uint64(limit))
