"""From a budget to a number of steps, decided once per run folder and written to `lineage.json`.

Notable: what was decided is never decided again, so a run that goes on after an interruption takes the steps it would have
taken; and a folder that holds another run is refused rather than mixed.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilth.contracts import Examples
from tilth.errors import TilthError
from tilth.registry import plain
from tilth.training.feed import tokens_per_example
from tilth.training.lineage import Lineage
from tilth.training.parallel import World
from tilth.training.settings import Budget, Training
from tilth.training.trial import Trial

_FREE = ("log_every", "checkpoint_every", "checkpoint_seconds", "keep_checkpoints")  # may change between interruptions
_MEASURED_SHARE, _MEASURED_MOST = 0.05, 10.0  # of the seconds given; seconds


def plan(
    folder: Path, examples: Examples, training: Training, budget: Budget, seed: int, world: World,
    trial: Callable[[], Trial],
) -> Lineage:  # fmt: skip
    """The run's lineage: read from `folder` if it was decided before, else decided and written there.

    trial: what measures a step, where the budget needs it.
    """
    unplanned = Lineage(len(examples), seed, training.batch_size, training.accumulate, world.size, steps=0)
    settings = {
        "training": {name: value for name, value in plain(training).items() if name not in _FREE},
        "budget": plain(budget),
    }
    path = folder / "lineage.json"
    if world.agree(int(path.exists())):
        lineage = Lineage.read(folder)
        said = json.loads(path.read_text(encoding="utf-8"))
        asked = json.loads(json.dumps({**unplanned.plain(), **settings}))
        different = [
            f"{name} was {_short(said.get(name))} and is {_short(asked[name])}"
            for name in asked
            if name != "steps" and said.get(name) != asked[name]
        ]
        if different:
            raise TilthError(
                f"this folder holds a run with other settings: {'; '.join(different)}",
                where=str(folder),
                hint="Use the settings it was begun with, or another folder.",
            )
        return lineage
    decided = replace(unplanned, steps=world.agree(_steps(unplanned, examples, budget, trial)))
    if world.first:
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump({**decided.plain(), **settings}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    return decided


def _steps(unplanned: Lineage, examples: Examples, budget: Budget, trial: Callable[[], Trial]) -> int:
    per_step = unplanned.per_step
    if budget.steps:
        return budget.steps
    if budget.samples:
        return math.ceil(budget.samples / per_step)
    if budget.epochs:
        return math.ceil(budget.epochs * unplanned.count / per_step)
    if budget.seconds:
        begun = time.perf_counter()
        each = trial().seconds(unplanned, min(_MEASURED_SHARE * budget.seconds, _MEASURED_MOST))
        return max(1, int((budget.seconds - (time.perf_counter() - begun)) / each))
    if budget.flops:
        if each := trial().flops(unplanned):
            return math.ceil(budget.flops / each)
        raise TilthError(
            "no floating-point operations were counted in a step", hint="Give the budget in steps, samples or epochs."
        )
    tokens = tokens_per_example(examples, unplanned) * per_step
    if not tokens:
        raise TilthError("these examples have no tokens to count", hint="Give the budget in steps, samples, epochs or seconds.")
    assert budget.tokens
    return math.ceil(budget.tokens / tokens)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + " ..."
