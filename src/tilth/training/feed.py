"""The batches of each step, made ahead of time by a thread.

Notable: a batch is a function of positions, so working ahead changes nothing; an error while making one is raised in the
loop, at the step it belongs to.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType

import numpy as np
from torch import Tensor

from tilth.batches.order import Order
from tilth.contracts import Batch, Examples, Noise
from tilth.training.lineage import Lineage
from tilth.training.parallel import World

_AHEAD = 2  # steps
_BLOCK = 64  # steps whose order is computed at once


class Feed:
    """Iterates over steps start ... stop - 1; each gives this process's micro-batches of that step, on the device."""

    def __init__(self, examples: Examples, lineage: Lineage, world: World, start: int, stop: int) -> None:
        self.examples, self.lineage, self.world, self.start, self.stop = examples, lineage, world, start, stop
        self._queue: queue.Queue[list[Batch] | BaseException] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tilth-feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        while self._thread.is_alive():  # it may be waiting for room
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[list[Batch]]:
        for _ in range(self.start, self.stop):
            made = self._queue.get()
            if isinstance(made, BaseException):
                raise made
            yield [batch.to(self.world.device) for batch in made]

    def _work(self) -> None:
        try:
            for first in range(self.start, self.stop, _BLOCK):
                for positions, indices in zip(*self._block(first, min(first + _BLOCK, self.stop)), strict=True):
                    made = [self._make(index, at) for index, at in zip(indices, positions, strict=True)]
                    if self._closed.is_set():
                        return
                    self._queue.put(made)
        except BaseException as error:
            self._queue.put(error)

    def _block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and example numbers (steps, accumulate, batch_size) of this process's part of some steps."""
        at = self.lineage
        shape = (last - first, at.world, at.accumulate, at.batch_size)
        start, stop = first * at.per_step, last * at.per_step
        indices = Order(at.count, at.seed).indices(start, stop).reshape(shape)
        return np.arange(start, stop).reshape(shape)[:, self.world.rank], indices[:, self.world.rank]

    def _make(self, indices: np.ndarray, positions: np.ndarray) -> Batch:
        batch = self.examples.batch(indices, Noise(self.lineage.seed, positions))
        return pinned(batch) if self.world.device.type == "cuda" else batch


def pinned(batch: Batch) -> Batch:
    """The same batch in page-locked memory, so that copying it to the GPU does not hold up this process."""
    values = {
        name: value.pin_memory() if isinstance(value, Tensor) else pinned(value) if isinstance(value, Batch) else value
        for name, value in batch.items()
    }
    return Batch(tokens=batch.tokens, samples=batch.samples, **values)


def held_out(examples: Examples, limit: int | None, batch_size: int, seed: int, world: World) -> Iterator[Batch]:
    """Every example once, in order, or `limit` of them evenly spaced, shared out over the processes.

    The same noise each time, and never training's.
    """
    count = min(max(limit or len(examples), world.size), len(examples))  # none is left without a row
    share = np.array_split(np.linspace(0, len(examples) - 1, count).round().astype(np.int64), world.size)[world.rank]
    for start in range(0, len(share), batch_size):
        indices = share[start : start + batch_size]
        yield examples.batch(indices, Noise(~seed, indices)).to(world.device)


def tokens_per_example(examples: Examples, lineage: Lineage, sample: int = 256) -> float:
    """Mean tokens of the first examples of the run (exact where all are equally long)."""
    size = min(lineage.batch_size, sample)
    wanted = min(max(size, sample // size * size), -(-lineage.count // size) * size)
    order = Order(lineage.count, lineage.seed)
    batches = [
        examples.batch(order.indices(start, start + size), Noise(lineage.seed, np.arange(start, start + size)))
        for start in range(0, wanted, size)
    ]
    return sum(batch.tokens for batch in batches) / wanted
