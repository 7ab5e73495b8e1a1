"""Arithmetic on sequences of unequal length laid end to end: no loop over sequences."""

import numpy as np
from numpy.typing import NDArray


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1 ... start + length - 1 for each pair, one after another."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def padded(values: np.ndarray, lengths: NDArray[np.int64], width: int, fill: int) -> NDArray[np.int32]:
    """Sequences laid end to end as rows of (len(lengths), width), filled up on the right; width >= every length."""
    rows = np.full((len(lengths), width), fill, dtype=np.int32)
    rows[np.arange(width) < lengths[:, None]] = values
    return rows


def offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each sequence begins, and after the last where it ends: (len + 1)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def up_to_8(size: int | np.integer) -> int:
    """The next multiple of 8: few different shapes for a compiled model, whole vectors for the hardware."""
    return -(-int(size) // 8) * 8


def trimmed(rows: NDArray[np.int32], size: NDArray[np.int64], pad: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows padded on the right, cut behind the longest of them (up to a multiple of 8), and which columns are tokens."""
    width = up_to_8(size.max())
    ids = np.full((len(size), width), pad, dtype=np.int64)
    used = min(width, rows.shape[1])
    ids[:, :used] = rows[:, :used]
    return ids, np.arange(width) < size[:, None]
