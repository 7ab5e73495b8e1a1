"""The same examples in the same order, some of them never drawn.

Notable: a forgotten example's positions go to other examples, chosen by a hash of the position; everything else of the run
stays what it was. So a checkpoint made before the first forgotten example was drawn is also a checkpoint of this run, and
going on from it ends where training from the start without the examples would have ended.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilth.batches.order import Order
from tilth.contracts import Batch, Examples, Noise
from tilth.errors import TilthError
from tilth.training.lineage import Lineage

_BLOCK = 2**16


class Without:
    """examples: all of them. forgotten: numbers of those that are never to be drawn again."""

    def __init__(self, examples: Examples, forgotten: np.ndarray) -> None:
        self.examples, self.forgotten = examples, np.unique(forgotten)
        self.clean = np.setdiff1d(np.arange(len(examples)), self.forgotten)
        if not len(self.clean):
            raise TilthError(
                "every example holds something of the rows to be forgotten: nothing is left to train on",
                hint="Narrow the predicate, or delete the model.",
            )

    def __len__(self) -> int:
        return len(self.examples)

    def drawn(self, indices: np.ndarray, noise: Noise) -> NDArray[np.int64]:
        """The examples that are drawn where the order says `indices`, at the positions of `noise`."""
        indices = np.asarray(indices, dtype=np.int64)
        instead = self.clean[(noise.uniform("forgotten") * len(self.clean)).astype(np.int64)]
        return np.where(np.isin(indices, self.forgotten), instead, indices)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        return self.examples.batch(self.drawn(indices, noise), noise)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Rows of the examples as the order names them; what took the place of forgotten ones hangs on the position."""
        return self.examples.rows(indices)

    def ever_drawn(self, lineage: Lineage) -> NDArray[np.int64]:
        """Numbers of all examples a whole run draws, ascending; memory does not grow with the length of the run."""
        seen = np.zeros(len(self), dtype=bool)
        order, stop = Order(lineage.count, lineage.seed), lineage.steps * lineage.per_step
        for start in range(0, stop, _BLOCK):
            end = min(start + _BLOCK, stop)
            seen[self.drawn(order.indices(start, end), Noise(lineage.seed, np.arange(start, end)))] = True
        return np.flatnonzero(seen)
