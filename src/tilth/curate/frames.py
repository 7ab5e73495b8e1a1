"""What steps share: the text column of a frame, and how verdicts found over the whole corpus return to its rows.

Notable: a verdict finds its row by a 64-bit hash of the row's id, in a batch function that looks up a sorted array; no
join, so rows never move and the plan streams. The table of verdicts travels with the plan to where it runs: its size is
that of the rows removed, not of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from daft import DataType, Expression, col
from daft.functions import coalesce, hash

from tilth.curate.characters import by_pieces
from tilth.errors import TilthError, nearest

KEY = "_key"


def text_column(frame: daft.DataFrame, column: str, step: str) -> Expression:
    """The string column a step works on; TilthError if the frame has none of that name."""
    if column not in frame.column_names:
        known = [name for name in frame.column_names if name != "removed" and not name.startswith("_")]
        raise TilthError(f"there is no column '{column}'", where=step, hint=nearest(column, known))
    dtype = frame.schema()[column].dtype
    if not dtype.is_string():
        raise TilthError(f"column '{column}' holds {dtype}, not text", where=step, hint="Set `column` to a column of text.")
    return col(column)


def on_texts(function: Callable[[pa.Array], pa.Array]) -> Callable[[Expression], Expression]:
    """A function from texts (pyarrow string array) to strings of the same length, to be used in a plan."""

    def batch(texts: daft.Series) -> pa.Array:
        return by_pieces(function, texts.to_arrow())

    return daft.func.batch(return_dtype=DataType.string(), use_process=False)(batch)


def remove(frame: daft.DataFrame, reason: Expression) -> daft.DataFrame:
    """Fill 'removed' with `reason` (null: keep) where the row is still kept."""
    return frame.with_column("removed", coalesce(col("removed"), reason))


def collect_kept(frame: daft.DataFrame, **columns: Expression) -> dict[str, pa.Array]:
    """The given columns of all rows still kept, in row order, computed now; and '_key', by which verdicts find rows.

    TilthError when two rows have the same id: a verdict on one would hit the other.
    """
    chosen = [expression.alias(name) for name, expression in columns.items()]
    kept = frame.where(col("removed").is_null()).select(_key().alias(KEY), *chosen).to_arrow()
    keys = np.sort(kept[KEY].to_numpy())
    if (repeated := keys[1:][keys[1:] == keys[:-1]]).size:
        rows = frame.where(_key() == daft.lit(int(repeated[0]))).select("id").limit(1).to_pydict()["id"]
        raise TilthError(
            f"several rows have the id '{rows[0]}'", hint="Ids must be unique: ingest the corpus anew, or delete rows."
        )
    return {name: _whole(kept[name]) for name in kept.column_names}


@dataclass(frozen=True)
class Verdicts:
    """Rows to remove and why. keys: uint64, ascending; reasons: strings in the same order."""

    keys: np.ndarray
    reasons: pa.Array

    @classmethod
    def of(cls, keys: np.ndarray, *reason: pa.Array | str) -> Verdicts:
        """keys in any order; reason: the parts of the reason, each one string for all or one per key."""
        order = np.argsort(keys)
        return cls(keys[order], join_texts(*reason, count=len(keys)).take(pa.array(order)))


def apply(verdicts: Verdicts | None, frame: daft.DataFrame, step: str) -> daft.DataFrame:
    """The frame with the rows that `fit` found marked as removed."""
    if verdicts is None:
        raise RuntimeError(f"{step} needs fit before it is applied")
    if not len(verdicts.keys):
        return frame
    keys, reasons = verdicts.keys, verdicts.reasons

    def look_up(wanted: daft.Series) -> pa.Array:
        asked = wanted.to_arrow().to_numpy()
        place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        return reasons.take(pa.array(place, mask=keys[place] != asked))

    found = daft.func.batch(return_dtype=DataType.string(), use_process=False)(look_up)
    return remove(frame, found(_key()))


def join_texts(*parts: pa.Array | str, count: int) -> pa.Array:
    """large_string (count,): the parts of each row joined."""
    if count == 0:
        return pa.array([], pa.large_string())
    wide = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part.cast(pa.large_string()) for part in parts]
    joined = pc.binary_join_element_wise(*wide, pa.scalar("", pa.large_string()))
    return joined if isinstance(joined, pa.Array) else pa.array([joined.as_py()] * count, pa.large_string())


def _key() -> Expression:
    return hash(col("id"))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The chunks as one array."""
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)


def judge(
    step: str,
    texts: pa.Array,
    bounds: Mapping[str, tuple[float | None, float | None]],
    figures: Iterable[tuple[str, np.ndarray]],
    *,
    needs_text: bool = True,
) -> pa.Array:
    """Per text the reason of the first figure out of its bounds, as 'quality: words 3, below 50'; null where none is.

    bounds: name -> (lowest, highest) permitted, None: any. figures: name, float64 (texts,). needs_text: null is a reason.
    """
    reasons = pa.nulls(len(texts), pa.large_string())
    if needs_text and texts.null_count:
        reasons = pc.if_else(pc.is_valid(texts), reasons, pa.scalar(f"{step}: no text", pa.large_string()))
    for name, values in figures:
        for bound, word, outside in zip(bounds.get(name, ()), ("below", "above"), (np.less, np.greater)):
            if bound is None:
                continue
            rows = np.flatnonzero(outside(values, bound) & pc.is_null(reasons).to_numpy(zero_copy_only=False))
            if len(rows):
                shown = pc.cast(pc.round(pa.array(values[rows]), ndigits=3), pa.string())
                said = join_texts(f"{step}: {name} ", shown, f", {word} {bound:g}", count=len(rows))
                place = np.full(len(texts), -1)
                place[rows] = np.arange(len(rows))
                reasons = pc.coalesce(reasons, said.take(pa.array(place, mask=place < 0)))
    return reasons
