"""Forget examples, each served with one retain example; and examples with one more array in every batch.

Notable: which retain example comes with a forget example depends on the seed and the position in the run alone, so it
is the same after a resume and on any number of processes, and `retained` can say it again for any step.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from tilth.contracts import Batch, Examples, Noise


class Rows(Protocol):
    """What one array per example looks like: `values[indices]` is what a batch of those examples gets."""

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


class PairedExamples:
    """A batch holds `forget` (a batch of the forget set) and `retain` (as many examples of the retain set, or None)."""

    def __init__(self, forget: Examples, retain: Examples | None) -> None:
        self.forget, self.retain = forget, retain

    def __len__(self) -> int:
        return len(self.forget)

    def retained(self, noise: Noise) -> np.ndarray:
        """Numbers of the retain examples served at the positions of `noise`, uniform with replacement."""
        if self.retain is None:
            return np.empty(0, dtype=np.int64)
        return (noise.uniform("retain") * len(self.retain)).astype(np.int64)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        forget = self.forget.batch(indices, noise)
        retain = self.retain.batch(self.retained(noise), noise) if self.retain is not None else None
        tokens = forget.tokens + (retain.tokens if retain else 0)
        return Batch(tokens=tokens, samples=forget.samples, forget=forget, retain=retain)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Rows of the forget corpus. Those of the retain corpus hang on the position: `retain.rows(retained(noise))`."""
        return self.forget.rows(indices)


class WithArrays:
    """The same examples, every batch with more named arrays: what does not change while training, computed once."""

    def __init__(self, examples: Examples, arrays: Mapping[str, Rows]) -> None:
        self.examples, self.arrays = examples, arrays

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        batch = self.examples.batch(indices, noise)
        more = {name: torch.from_numpy(np.ascontiguousarray(values[indices])) for name, values in self.arrays.items()}
        return Batch(tokens=batch.tokens, samples=batch.samples, **batch, **more)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return self.examples.rows(indices)


class Ragged:
    """Arrays of different lengths, one per example, end to end: `values[starts[i]:starts[i + 1]]` is example i's.

    `ragged[indices]` is those examples' arrays end to end, in that order.
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray) -> None:
        self.values, self.starts = values, starts

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        begin, count = self.starts[indices], np.diff(self.starts)[indices]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return self.values[np.repeat(begin, count) + within]
