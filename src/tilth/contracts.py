"""The shapes a method can have. Everything in Tilth that is not one of these is plumbing between them.

Notable: whatever trains by gradient is an Objective, so there is one loop; what an Objective needs besides its batch it
declares (`needs`) and finds in the batch, computed once; batches are functions of positions, not of a worker's
history, so any step of any run can be made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from tilth.noise import Noise
from tilth.registry import Configured, CorpusRef, Kind, ModelRef, TokenizerRef, method, use

if TYPE_CHECKING:
    import daft

    from tilth.context import Context

__all__ = [
    "Batch", "Benchmark", "Backbone", "Configured", "CorpusRef", "Edit", "Estimator", "Examples", "Features", "Guard", "Kind",
    "Loss", "ModelRef", "Noise", "Objective", "Reparametrisation", "Schedule", "Scores", "Stage", "Step", "TokenizerRef",
    "method", "use",
]  # fmt: skip


class Batch(Mapping[str, Any]):
    """Named tensors (or nested batches) of one step, read as attributes: `batch.input_ids`, `batch.forget.labels`.

    tokens: how many tokens the batch holds, samples: how many examples; both plain integers, known without the device.
    """

    def __init__(self, *, tokens: int = 0, samples: int = 0, **values: Tensor | Batch | None) -> None:
        self.values_, self.tokens, self.samples = values, tokens, samples

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values_"][name]
        except KeyError:
            raise AttributeError(f"this batch has {sorted(self.__dict__.get('values_', ()))}, not '{name}'") from None

    def __getitem__(self, name: str) -> Any:
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def __bool__(self) -> bool:
        return True

    # Mapping's own two work by catching KeyError, which torch.compile does not guard: a graph traced without a mask would
    # then be used for batches that have one.
    def __contains__(self, name: object) -> bool:
        return name in self.values_

    def get(self, name: str, default: Any = None) -> Any:  # type: ignore[override]
        return self.values_.get(name, default)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; copies do not block."""
        if torch.device(device).type == "cpu":
            return self
        moved = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v and v.to(device) for k, v in self.values_.items()
        }
        return Batch(tokens=self.tokens, samples=self.samples, **moved)


class Loss:
    """What an objective returns: `total` is a mean over `count` units (tokens, examples), `parts` are shown in the log.

    With `count` (a number, or a 0-d tensor without gradient) gradients over several micro-batches or processes are those
    of the one big batch exactly: fit weighs each total by its count. Leave it at 1 when every batch weighs the same.
    """

    def __init__(self, total: Tensor, *, count: Tensor | float = 1.0, **parts: Tensor) -> None:
        self.total, self.count, self.parts = total, count, {name: part.detach() for name, part in parts.items()}


class Objective(nn.Module, ABC):
    """batch -> Loss. Everything with a gradient: pre-training, distilling, adapting, unlearning.

    model: the network being trained; further modules an objective owns are trained and checkpointed with it.
    needs: names of per-example arrays that do not change while training (a reference's log-probabilities, a teacher's
    features). Whoever builds the batches computes them once, before the first step, by calling `prepare`.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str]
    name: ClassVar[str]
    systems: ClassVar[tuple[int, ...]]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: Batch) -> Loss: ...

    def after_step(self, step: int) -> None:
        """Called after optimiser step `step` (from 1): EMA teachers, queues, schedules of the objective's own."""


@runtime_checkable
class Examples(Protocol):
    """A finite set of training examples with random access by number."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        """Examples `indices` (any order, repeats allowed) as tensors; no Python loop per example."""
        ...

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """For each example, the corpus row numbers it was made from: lineage."""
        ...


@dataclass
class Features:
    """tokens (batch, tokens, width), pooled (batch, width), layers: the same as tokens, of the layers asked for."""

    tokens: Tensor
    pooled: Tensor
    layers: tuple[Tensor, ...] = ()


class Backbone(ABC):
    """Settings of a network; `build` makes it."""

    kind: ClassVar[str]
    name: ClassVar[str]

    @abstractmethod
    def build(self, inputs: Any) -> nn.Module:
        """The network with fresh weights; inputs: what it must fit (a tokeniser, a sample's shape)."""


class Step(ABC):
    """Curation: a Daft frame in, the same frame with more said about its rows out; nothing is computed yet.

    The frame has the corpus's columns and 'removed' (string): why a row is dropped, null while it is kept. A step
    rewrites content or fills 'removed' of rows still kept; it never drops rows, so that reasons and counts survive.
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def fit(self, frame: daft.DataFrame) -> None:  # noqa: B027
        """Learn what the step needs from the whole corpus (thresholds, a classifier)."""

    @abstractmethod
    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame: ...


class Schedule(ABC):
    """step -> value; a pure function, so that resuming needs no state."""

    @abstractmethod
    def __call__(self, step: int, steps: int) -> float:
        """The value at `step` of `steps`, as a share of the base value."""


class Reparametrisation(ABC):
    """Changes how a module's weights are expressed while it trains."""

    @abstractmethod
    def apply(self, module: nn.Module) -> nn.Module: ...

    @abstractmethod
    def fold(self, module: nn.Module) -> nn.Module:
        """Bake what was trained into ordinary weights: same outputs, original layout."""


class Edit(ABC):
    """model -> model without training."""

    @abstractmethod
    def __call__(self, model: nn.Module, forget: Any, retain: Any) -> nn.Module: ...


class Guard(ABC):
    """Acts while a model generates; saved beside the model and loaded with it."""

    @abstractmethod
    def attach(self, model: nn.Module) -> nn.Module: ...


class Estimator(ABC):
    """scikit-learn's contract on frozen features; subclasses also inherit BaseEstimator."""

    @abstractmethod
    def fit(self, X: np.ndarray, y: np.ndarray) -> Estimator: ...

    @abstractmethod
    def predict(self, X: np.ndarray) -> np.ndarray: ...


@dataclass
class Scores:
    """metrics: name -> number. details: per-example raw values, column -> list, kept as Parquet beside the metrics."""

    metrics: dict[str, float]
    details: dict[str, list[Any]] | None = None


class Benchmark(ABC):
    """model -> scores. Settings that are models or data are ModelRef and CorpusRef, resolved through the context."""

    kind: ClassVar[str]
    name: ClassVar[str]

    @abstractmethod
    def __call__(self, model: Path, context: Context) -> Scores:
        """model: the folder (or Hub id) of the model to score; load it with `backbones.folder.load`."""


class Stage(ABC):
    """One stage of a recipe, e.g. `pretrain`. Its constructor's arguments are what the recipe may say.

    gives: what later stages may take from it ('model', 'corpus', 'tokenizer', 'scores', 'features').
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    gives: ClassVar[str]
    trains: ClassVar[bool] = False  # True: under torchrun every process runs it, and only `context.first` writes
    seeded: ClassVar[bool] = True  # False: the same for every seed, so that seeds share it

    def check(self) -> None:  # noqa: B027
        """Raise TilthError for what can be known to be wrong before any stage has run."""

    @abstractmethod
    def run(self, context: Context) -> dict[str, float]:
        """Do it; write into context.folder ('model/', 'corpus.lance/', 'tokenizer/'); return metrics."""
