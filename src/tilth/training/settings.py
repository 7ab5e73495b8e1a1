"""What a recipe may say about training: how (`Training`) and for how long (`Budget`).

Notable: plain frozen dataclasses whose fields are the settings, checked by pydantic through their annotations, both
when a recipe is read and when `fit` is called from Python.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Lt

from tilth.errors import TilthError
from tilth.registry import Configured, Kind, Positive, PositiveInt, use

S = TypeVar("S", "Training", "Budget")

# Beyond these a budget is taken for a mistake: a quarter of a year, ten times the largest runs there have been.
PLAUSIBLE = {"steps": 1e9, "tokens": 1e15, "samples": 1e13, "epochs": 1e6, "seconds": 8e6, "flops": 1e27}


@dataclass(frozen=True)
class Training:
    """lr: peak learning rate. batch_size: examples per forward pass and process; a step uses batch_size * accumulate * processes.

    clip: greatest norm of the gradient (None: no limit). precision: 'bf16' runs under autocast, weights stay fp32.
    compile: 'auto' compiles where it is won back: on a CPU, where it takes about half a minute, from steps * parameters of 4e9 on (5M
    parameters, 800 steps; a budget of 240 seconds or 1e14 flops); on a GPU, where it takes up to two, from 10,000 steps on (900
    seconds or 1e17 flops). ema: decay of an exponential moving
    average of the weights, which the model holds in the end. log_every: steps. checkpoint_every: steps; checkpoint_seconds:
    wall time between checkpoints; the last step always leaves one, keep_checkpoints says how many stay (None: all).
    parallel: under torchrun, 'ddp' keeps the model on every process, 'fsdp' shards it; 'auto' shards what would not fit.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    lr: Positive = 1e-3
    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1
    schedule: Annotated[Configured, Kind("schedule")] = use("schedule", "cosine")
    optimiser: Annotated[Configured, Kind("optimiser")] = use("optimiser", "adamw")
    clip: Positive | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool | Literal["auto"] = "auto"
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt | None = None
    checkpoint_seconds: Annotated[float, Ge(0)] | None = 300.0
    keep_checkpoints: PositiveInt | None = 2
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"


@dataclass(frozen=True)
class Budget:
    """How long to train: exactly one of these.

    tokens become steps through the tokens of the first batches; flops (of matrix products and convolutions, forward and backward)
    through those counted in the first batch, so that methods with more views, tokens or networks are compared at equal
    compute; seconds through the measured time of some steps, which are then undone. The number of steps so found is written
    down and kept when the run is interrupted and goes on, so that resuming is exact.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    steps: PositiveInt | None = None
    tokens: Positive | None = None
    samples: Positive | None = None
    epochs: Positive | None = None
    seconds: Positive | None = None
    flops: Positive | None = None

    def __post_init__(self) -> None:
        given = {entry.name: getattr(self, entry.name) for entry in fields(self) if getattr(self, entry.name) is not None}
        names = ", ".join(entry.name for entry in fields(self))
        if len(given) != 1:
            said = f"both {' and '.join(given)}" if given else "nothing"
            raise TilthError(f"a budget needs exactly one of {names}, and this one says {said}", hint="Write e.g. {epochs: 3}.")
        [(name, value)] = given.items()
        if isinstance(value, str):  # pydantic says what is wrong with it
            return
        if not value > 0:
            raise TilthError(f"the budget's {name} is {value!r} and must be above zero")
        if value > PLAUSIBLE[name]:
            raise TilthError(
                f"a budget of {value:g} {name} is more than any machine gets through", hint="Is it a slip of the pen?"
            )


def checked(settings: S) -> S:
    """The same settings with every value checked and every method in them configured. TilthError names the setting."""
    from pydantic import TypeAdapter, ValidationError

    given = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    try:
        return TypeAdapter(type(settings)).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0]) if first["loc"] else ""
        raise TilthError(f"'{setting}' is {given.get(setting)!r}: {first['msg']}", where=type(settings).__name__) from None
