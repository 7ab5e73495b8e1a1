"""Best-fit-decreasing packing of documents into rows of fixed length (arXiv 2404.10830).

Notable: pieces of one size are placed all at once (where the best-fitting row has room for another piece of the size
it remains the best), so the work is one step per pair of (size, room left) met, not one per document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilth.batches.text.ragged import ranges

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Documents cut into pieces of at most the row's length: document, first token in the store, number of tokens."""

    document: Ints
    start: Ints
    length: Ints


def cut(offsets: Ints, length: int) -> Pieces:
    """Whole rows from the front of each document and what remains at its end; empty documents have no piece."""
    sizes = np.diff(offsets)
    counts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), counts)
    start = np.repeat(offsets[:-1], counts) + length * ranges(np.zeros_like(counts), counts)
    return Pieces(document, start, np.minimum(length, offsets[1:][document] - start))


def best_fit(sizes: Ints, room: int) -> tuple[Ints, Ints]:
    """Best-fit-decreasing: each piece, largest first, into the row with the least room that still holds it.

    sizes: (n) of 1 ... room. Returns for each piece its row and where in the row it begins. O(n + steps * room), where a
    step is a pair of a size and a room left that occur together.
    """
    order = np.argsort(-sizes, kind="stable")
    values, first = np.unique(-sizes[order], return_index=True)
    row_of, begin = np.empty(len(sizes), np.int64), np.empty(len(sizes), np.int64)
    rows_with: list[list[Ints]] = [[] for _ in range(room + 1)]  # by room left
    some = np.zeros(room + 1, dtype=bool)
    opened = 0

    def keep(rows: Ints, left: int) -> None:
        if left and len(rows):
            rows_with[left].append(rows)
            some[left] = True

    for size, start, stop in zip((-values).tolist(), first.tolist(), [*first[1:].tolist(), len(order)]):
        while start < stop:
            left = size + int(some[size:].argmax())
            if some[left]:
                rows = rows_with[left].pop()
                some[left] = bool(rows_with[left])
            else:
                left = room
                rows = np.arange(opened, opened - (-(stop - start) // (room // size)))
                opened += len(rows)
            each = left // size
            used = min(len(rows), -(-(stop - start) // each))
            placed = order[start : min(stop, start + used * each)]
            row_of[placed] = np.repeat(rows[:used], each)[: len(placed)]
            begin[placed] = room - left + size * (np.arange(len(placed)) % each)
            last = len(placed) - (used - 1) * each  # the last row may be filled only in part
            keep(rows[: used - 1], left - each * size)
            keep(rows[used - 1 : used], left - last * size)
            keep(rows[used:], left)
            start += len(placed)
    return row_of, begin
