"""What a run says about itself: losses are kept on the device and fetched when a line is due.

Notable: fetching a window of steps is the only time the loop waits for the device; every step's own loss is among them, so
a loss that is not a number is traced to its step although nobody looked at the time.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilth.training.parallel import World


@dataclass
class Micro:
    """A micro-batch's loss as it left the objective, and what the batch held."""

    total: Tensor
    count: Tensor | float
    parts: dict[str, Tensor]
    tokens: int
    samples: int

    def weighted(self) -> Tensor:
        """(2 + parts,) float64: count, total * count, each part * count."""
        values = torch.stack([self.total, *self.parts.values()]).double()
        count = torch.as_tensor(self.count, dtype=torch.float64, device=values.device)
        return torch.cat([count[None], values * count])


class NotFinite(Exception):
    """The loss or the gradient (`what`) of `step` is not a finite number."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(f"the {what} of step {step} is not finite")


class Window:
    """The steps since the last line of the log.

    rows: one list of numbers per fetched step: loss, norm of the gradient before clipping (0 where it was not computed),
    then the parts called `names`. tokens and samples count from the first step of the run, over all processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows: list[list[float]] = []
        self.names: list[str] = []
        self.tokens = self.samples = 0
        self._pending: list[tuple[int, list[Micro], Tensor | None]] = []

    def add(self, step: int, micros: list[Micro], norm: Tensor | None) -> None:
        """A step's losses, still on the device."""
        self._pending.append((step, micros, norm))

    def fetch(self, *asked: bool) -> list[bool]:
        """Bring what is pending to the host, as means over each step's units; NotFinite names the first bad step.

        asked: questions to which any process may say yes; the common answers come back, for no extra message.
        """
        if not self._pending:
            return list(asked)
        steps = [step for step, _, _ in self._pending]
        sums = torch.stack([sum_of(micros) for _, micros, _ in self._pending])
        micros = [micro for _, step_micros, _ in self._pending for micro in step_micros]
        self.names = list(micros[0].parts)
        counted = [sum(micro.tokens for micro in micros), sum(micro.samples for micro in micros), *asked]
        extra = torch.tensor(counted, dtype=torch.float64, device=sums.device)
        fetched = self.world.sum(torch.cat([sums.flatten(), extra])).cpu()
        norms = torch.stack(
            [torch.zeros((), device=sums.device) if norm is None else norm for _, _, norm in self._pending]
        ).tolist()
        self._pending.clear()
        table = fetched[: sums.numel()].reshape(sums.shape)
        means = (table[:, 1:] / table[:, :1].clamp(min=1e-300)).tolist()
        for step, mean, norm in zip(steps, means, norms, strict=True):
            if not (math.isfinite(mean[0]) and math.isfinite(norm)):
                raise NotFinite(step, "gradient" if math.isfinite(mean[0]) else "loss")
            self.rows.append([mean[0], norm, *mean[1:]])
        tokens, samples, *answers = fetched[sums.numel() :].tolist()
        self.tokens += int(tokens)
        self.samples += int(samples)
        return [answer > 0 for answer in answers]

    def line(self) -> dict[str, Any]:
        """Means over the window, which starts anew."""
        means = [sum(column) / len(self.rows) for column in zip(*self.rows, strict=True)]
        self.rows = []
        parts = [mean if math.isfinite(mean) else None for mean in means[2:]]
        return {"loss": means[0], "gradient_norm": means[1], "parts": dict(zip(self.names, parts, strict=True))}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; JSON has no NaN, which a part may be."""
        rows = [[value if math.isfinite(value) else None for value in row] for row in self.rows]
        return {"rows": rows, "names": self.names, "tokens": self.tokens, "samples": self.samples}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rows = [[math.nan if value is None else value for value in row] for row in state["rows"]]
        self.names, self.tokens, self.samples = state["names"], state["tokens"], state["samples"]


def sum_of(micros: list[Micro]) -> Tensor:
    """Of a step's micro-batches, `Micro.weighted` summed."""
    return micros[0].weighted() if len(micros) == 1 else torch.stack([micro.weighted() for micro in micros]).sum(0)


class Log:
    """`log.jsonl`: one JSON object per line, each with `step`; only the first process writes."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, and a line cut short by a kill."""
        if not self.world.first:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.path)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; a kill of the process cannot lose it any more."""
        if self.world.first:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        """Nor a loss of power, from here on: called before a checkpoint says that these steps are done."""
        if self.world.first and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def last_loss(self) -> float:
        """The loss of the newest line that has one; NaN before the first."""
        if self.path.exists():
            for line in reversed(self.path.read_text(encoding="utf-8").splitlines()):
                if "loss" in (said := json.loads(line)):
                    return float(said["loss"])
        return math.nan
