"""Random numbers that are addressed, not consumed: a function of a seed, a name and a position, and of nothing else.

Notable: so masks and pairings do not depend on how a batch is cut, on the number of processes, or on a resume.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits that avalanches."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(seed: int, name: str) -> np.uint64:
    """64 bits of a cryptographic hash of (seed, name): neighbouring seeds have nothing in common."""
    return np.uint64(int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little"))


def hashed_uniform(seed: int, name: str, positions: np.ndarray, shape: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """float64 in [0, 1), (len(positions), *shape): a function of the seed, the name and each position alone.

    Each position owns a splitmix64 sequence; a longer trailing shape continues a shorter one.
    """
    positions = np.asarray(positions, dtype=np.uint64)
    counters = np.arange(1, int(np.prod(shape, dtype=np.int64)) + 1, dtype=np.uint64)
    start = mix(key(seed, name) + positions * GOLDEN)
    bits = mix(start[:, None] + counters * GOLDEN)
    unit: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return unit.reshape(len(positions), *shape)


class Noise:
    """The random numbers of the examples at some positions of a run.

    seed: of the run. positions: where the examples stand in the run, integers (batch,).
    """

    def __init__(self, seed: int, positions: np.ndarray) -> None:
        self.seed, self.positions = seed, np.asarray(positions, dtype=np.uint64)

    def uniform(self, name: str, *shape: int) -> NDArray[np.float64]:
        """float64 in [0, 1), (len(positions), *shape); another name gives independent numbers."""
        return hashed_uniform(self.seed, name, self.positions, shape)

    def keys(self) -> NDArray[np.int64]:
        """64 bits for each example, int64 (len(positions),), from which a device makes numbers of its own (`batches.draws`)."""
        return mix(key(self.seed, "example") + self.positions * GOLDEN).view(np.int64)
