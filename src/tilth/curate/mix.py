"""A mixture of sources in given proportions.

Notable: rows are drawn by hash as in `sample`, so the mixture does not depend on the order of rows.
"""

from collections.abc import Mapping

import daft
import numpy as np
import pyarrow as pa
from daft import col, lit
from daft.functions import when

from tilth.contracts import Step, method
from tilth.curate.frames import collect_kept, remove
from tilth.curate.sample import draw
from tilth.errors import TilthError, nearest
from tilth.registry import NonNegative, NonNegativeInt, PositiveInt


@method("curate", "mix")
class Mix(Step):
    """Keeps rows so that the values of `column` have shares in proportion to `weights`; no row is repeated.

    weights: {value: weight}; rows of other values, and of weight 0, are removed. rows: how many to keep in all; null: as
    many as the scarcest source allows. Shares are exact but for rounding to whole rows. seed: null means the run's.
    Raises TilthError when a value named does not occur, or `rows` asks more of a source than it has.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, NonNegative],
        column: str = "source",
        rows: PositiveInt | None = None,
        seed: NonNegativeInt | None = None,
    ) -> None:
        if not any(weights.values()):
            raise TilthError("mix needs a weight above 0", where="mix", hint="weights: {books: 3, web: 1}")
        self.weights, self.column, self.rows, self.seed = dict(weights), column, rows, seed
        self.last: dict[str, int] | None = None  # per value, the largest hash that is kept

    def fit(self, frame: daft.DataFrame) -> None:
        """Find for each value the hash of the last row to keep."""
        if self.column not in frame.column_names:
            raise TilthError(
                f"there is no column '{self.column}'", where=self.name, hint=nearest(self.column, frame.column_names)
            )
        found = collect_kept(frame, draw=draw(self.seed), value=col(self.column).cast(daft.DataType.string()))
        coded = found["value"].cast(pa.large_string()).dictionary_encode()
        values, codes = coded.dictionary.to_pylist(), coded.indices.fill_null(-1).to_numpy()
        draws = found["draw"].to_numpy()
        by_value = {value: np.sort(draws[codes == code]) for code, value in enumerate(values)}
        for value, weight in self.weights.items():
            if weight and value not in by_value:
                raise TilthError(f"no row has {self.column} '{value}'", where=self.name, hint=nearest(value, values))
        counts = self._counts({value: len(by_value.get(value, ())) for value in self.weights})
        self.last = {value: int(by_value[value][count - 1]) for value, count in counts.items() if count}

    def _counts(self, available: Mapping[str, int]) -> dict[str, int]:
        """How many rows of each value to keep: largest remainders, so that they add up to the whole."""
        total = sum(self.weights.values())
        shares = {value: weight / total for value, weight in self.weights.items() if weight}
        most = min(available[value] / share for value, share in shares.items())
        wanted = self.rows if self.rows is not None else int(most + 1e-9)
        exact = {value: wanted * share for value, share in shares.items()}
        counts = {value: int(rows) for value, rows in exact.items()}
        by_remainder = sorted(exact, key=lambda value: counts[value] - exact[value])
        for value in by_remainder[: wanted - sum(counts.values())]:
            counts[value] += 1
        for value, count in counts.items():
            if count > available[value]:
                raise TilthError(
                    f"{count} rows of {self.column} '{value}' are needed, {available[value]} are there",
                    where=self.name,
                    hint=f"With these weights at most {int(most + 1e-9)} rows can be mixed: lower `rows`, or leave it out.",
                )
        return counts

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        if self.last is None:
            raise RuntimeError("mix needs fit before it is applied")
        value = col(self.column).cast(daft.DataType.string())
        outcomes = lit(f"{self.name}: {self.column} has no weight")
        beyond = lit(f"{self.name}: beyond the share of its {self.column}")
        for name, last in self.last.items():
            drawn = when(draw(self.seed) > lit(np.uint64(last)), beyond).otherwise(lit(None))
            outcomes = when((value == lit(name)).fill_null(False), drawn).otherwise(outcomes)
        return remove(frame, outcomes)
