"""Some examples of a set, as a set of its own."""

from __future__ import annotations

import numpy as np

from tilth.contracts import Batch, Examples, Noise


class Chosen:
    """Examples `rows` of `examples`, in that order; `rows()` still names the corpus rows of the whole set."""

    def __init__(self, examples: Examples, rows: np.ndarray) -> None:
        self.examples, self.chosen = examples, rows

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        return self.examples.batch(self.chosen[indices], noise)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return self.examples.rows(self.chosen[indices])
