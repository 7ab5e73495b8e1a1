"""In which order examples are drawn, and random numbers for them: both are computed from positions, nothing is kept.

Notable: the order of an epoch is a keyed permutation evaluated per index (a Feistel network with cycle walking), so
a corpus of any size is shuffled in no memory, any step of any run can be made again, and the inverse says when an
example was seen. Random numbers are hashes of (seed, name, position), so they do not depend on how a batch is cut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilth.errors import TilthError
from tilth.noise import GOLDEN, hashed_uniform, key, mix

__all__ = ["Order", "hashed_uniform"]


class Order:
    """The order in which `count` examples are drawn: epoch after epoch, each a permutation of its own.

    Position p of the run draws an example of epoch p // count; within an epoch every example is drawn exactly once.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise TilthError("there are no examples to draw from", hint="Check that the corpus is not empty or filtered away.")
        self.count, self.seed = int(count), int(seed)
        bits = (self.count - 1).bit_length()
        self._low, self._high = bits // 2, bits - bits // 2
        self._rounds = 24 if bits < 12 else 10  # with fewer some orders of five or six examples are likelier than others (tested)
        self._seed = key(self.seed, "order")

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Example numbers drawn at positions start, start + 1 ... stop - 1 of the run."""
        if not 0 <= start <= stop:
            raise ValueError(f"positions must be 0 <= start <= stop, not {start}, {stop}")
        positions = np.arange(start, stop, dtype=np.uint64)
        count = np.uint64(self.count)
        return self._walk(positions % count, positions // count, inverse=False).astype(np.int64)

    def positions(self, index: int | np.ndarray, until: int) -> NDArray[np.int64]:
        """Positions below `until` at which the example (or any of the examples) `index` is drawn, ascending."""
        wanted = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.count):
            raise ValueError(f"example numbers lie in [0, {self.count})")
        epochs = np.arange(-(-until // self.count), dtype=np.uint64)
        epoch, example = (grid.ravel() for grid in np.meshgrid(epochs, wanted.astype(np.uint64), indexing="ij"))
        offset = self._walk(example, epoch, inverse=True).astype(np.int64)
        found = epoch.astype(np.int64) * self.count + offset
        return np.sort(found[found < until])

    def _walk(self, x: NDArray[np.uint64], epoch: NDArray[np.uint64], *, inverse: bool) -> NDArray[np.uint64]:
        """Apply the permutation of the next power of two again and again until the value falls below count.

        The power is less than twice count, so two rounds are enough on average; the result is a bijection of [0, count).
        """
        keys = mix(self._seed + epoch * GOLDEN)
        out = self._feistel(x, keys, inverse)
        outside = np.flatnonzero(out >= self.count)
        while outside.size:
            out[outside] = self._feistel(out[outside], keys[outside], inverse)
            outside = outside[out[outside] >= self.count]
        return out

    def _feistel(self, x: NDArray[np.uint64], keys: NDArray[np.uint64], inverse: bool) -> NDArray[np.uint64]:
        """An unbalanced Feistel network: each half in turn is changed by a hash of the other."""
        low_bits, low_mask, high_mask = np.uint64(self._low), np.uint64((1 << self._low) - 1), np.uint64((1 << self._high) - 1)
        low, high = x & low_mask, x >> low_bits
        for number in range(self._rounds - 1, -1, -1) if inverse else range(self._rounds):
            key = keys ^ np.uint64(number << 56)
            if number % 2:
                low = low ^ (mix(key + high * GOLDEN) & low_mask)
            else:
                high = high ^ (mix(key + low * GOLDEN) & high_mask)
        return (high << low_bits) | low
