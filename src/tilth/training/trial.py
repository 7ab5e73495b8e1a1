"""What one step costs, in seconds or in floating-point operations: found by doing some and undoing them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tilth.contracts import Examples
from tilth.training.checkpoints import seeded
from tilth.training.feed import Feed
from tilth.training.lineage import Lineage
from tilth.training.update import Update


class Trial:
    """Steps of a run that leave nothing behind: neither weights nor buffers, moments or random state."""

    def __init__(self, update: Update, optimiser: torch.optim.Optimizer, examples: Examples) -> None:
        self.update, self.optimiser, self.examples = update, optimiser, examples

    def seconds(self, lineage: Lineage, most: float) -> float:
        """Seconds per step (the median): train for about `most` (at least three steps, after one that warms up)."""
        times: list[float] = []
        with self._undone(lineage), Feed(self.examples, lineage, self.update.world, 0, 10_000) as feed:
            for batches in feed:
                begun = time.perf_counter()
                micros, _ = self.update(batches, self.optimiser)
                micros[0].total.item()  # wait for the device: this is a measurement
                times.append(time.perf_counter() - begun)
                if self.update.world.agree(int(len(times) > 3 and sum(times[1:]) > most)):
                    break
        return float(np.median(times[1:]))

    def flops(self, lineage: Lineage) -> float:
        """Floating-point operations of a step: those of matrix products and convolutions, forward and backward, over all processes.

        Counted on the first micro-batch, whatever the objective does with it (views, teachers, decoders, attention).
        """
        update, world = self.update, self.update.world
        # Of fused attention on the CPU the counter knows nothing, but sees its products; on a GPU it knows what takes less memory.
        counted = sdpa_kernel(SDPBackend.MATH) if world.device.type == "cpu" else nullcontext()
        with self._undone(lineage), Feed(self.examples, lineage, world, 0, 1) as feed, counted:
            batch = next(iter(feed))[0]
            with FlopCounterMode(display=False) as counter:
                with torch.autocast(world.device.type, torch.bfloat16, enabled=update.training.precision == "bf16"):
                    total, _, _ = update.plain(batch)
                total.backward()
        return float(counter.get_total_flops() * lineage.accumulate * world.size)

    @contextmanager
    def _undone(self, lineage: Lineage) -> Iterator[None]:
        objective = self.update.objective
        kept = {name: value.detach().clone() for name, value in objective.state_dict(keep_vars=True).items()}
        with seeded(lineage.seed, self.update.world):
            yield
        with torch.no_grad():
            for name, value in objective.state_dict(keep_vars=True).items():
                value.copy_(kept[name])
        self.optimiser.zero_grad(set_to_none=True)
        self.optimiser.state.clear()
