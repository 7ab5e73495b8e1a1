"""The shapes a method can have. Everything in Tilth that is not one of these is plumbing between them.

Notable: whatever trains by gradient is an Objective, so there is one loop; what an Objective needs besides its batch it
declares (`needs`) and finds in the batch, computed once; batches are functions of positions, not of a worker's
history, so any step of any run can be made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from tilth.noise import Noise
from tilth.registry import Configured, CorpusRef, Kind, ModelRef, TokenizerRef, method, use
from tilth.traits import Traits

if TYPE_CHECKING:
    import daft

    from tilth.context import Context

__all__ = [
    "Batch", "Benchmark", "Backbone", "Configured", "CorpusRef", "Edit", "Estimator", "Examples", "Features", "Guard", "Kind",
    "Loss", "ModelRef", "Noise", "Objective", "Reparametrisation", "Sample", "Schedule", "Scores", "Stage", "Step", "TokenizerRef",
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

    model: the network being trained, and `kept` unless said otherwise; further modules an objective owns are trained and checkpointed with it.
    needs: names of per-example arrays that do not change while training (a reference's log-probabilities, a teacher's
    features). Whoever builds the batches computes them once, before the first step, by calling `prepare`.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    shows: ClassVar[tuple[str, str]] = (
        "What is rebuilt",
        "Left to right: an example, what the model sees of it, and it with the hidden patches as the model predicts them.",
    )  # a title and a legend for `pictures`
    traits: ClassVar[Traits | None] = None  # the place in the catalogue of a method that needs no labels
    kind: ClassVar[str]
    name: ClassVar[str]
    systems: ClassVar[tuple[int, ...]]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: Batch) -> Loss: ...

    @property
    def kept(self) -> nn.Module:
        """The network to be kept once training ends: what is trained, or its moving average where that is what a method gives."""
        return self.model

    def after_step(self, step: int) -> None:
        """Called after optimiser step `step` (from 1): EMA teachers, queues, schedules of the objective's own."""

    def pictures(self, batch: Batch) -> Sequence[Sequence[Tensor]]:
        """For the report, what the objective makes of some examples: rows of pictures (channels, *size) in [0, 1]; none: nothing to see."""
        return ()


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

    # Examples of something else than text also say what they look like: `sample: Sample | Sequence[Sample]`.


@dataclass
class Features:
    """tokens (batch, tokens, width), pooled (batch, width), layers: the same as tokens, of the layers asked for.

    summary (batch, width): the class token's output where there is one; `tokens` are without it, `layers` with it.
    """

    tokens: Tensor
    pooled: Tensor
    layers: tuple[Tensor, ...] = ()
    summary: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """What the examples of a set look like, for a backbone that must fit them: channels, size (along each axis), and each
    channel's mean and standard deviation in the values' natural scale."""

    channels: int
    size: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class Backbone(ABC):
    """Settings of a network; `build` makes it."""

    kind: ClassVar[str]
    name: ClassVar[str]
    tokenised: ClassVar[bool] = True  # False: it reads something else than text and is built without a tokeniser

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
    """Changes how a module's weights are expressed while it trains. Kind 'adapter' where it is a setting."""

    kind: ClassVar[str]
    name: ClassVar[str]

    @abstractmethod
    def apply(self, module: nn.Module) -> None:
        """Change `module` in place: same outputs, and only what was added has gradients."""

    @abstractmethod
    def fold(self, module: nn.Module) -> None:
        """Bake what was trained into ordinary weights, in place: same outputs, the original layout."""


class Edit(ABC):
    """model -> model by calculation, or by small trainings of its own: no run of the one loop over forget and retain pairs."""

    kind: ClassVar[str]
    name: ClassVar[str]

    @abstractmethod
    def __call__(self, task: Any) -> dict[str, float]:
        """Change the model of `task` (an `unlearn.task.Task`) in place, or put another in its place; gives metrics."""


class Guard(ABC):
    """Acts while a model generates or is scored; learnt from a forget set, saved beside the weights, loaded with them.

    The constructor is configuration. For each batch of prompts `flags` says which ones the guard concerns: the others are
    answered by the bare model, bit for bit. Flagged prompts run as batches of their own, so a guard never meets a row
    it must leave alone: as `refusal` where there is one; else by `decode` where the guard decodes by itself; else by the
    model's own decoding within `acting` (hooks on modules) with `processors` (transformers LogitsProcessors, fresh for each
    batch, called with all ids so far and the next token's scores).
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    refusal: str | None = None
    configured: Configured  # its name and settings, kept with it; set by whoever builds it

    @abstractmethod
    def fit(self, task: Any) -> dict[str, float]:
        """Learn what is needed from `task` (an `unlearn.task.Task`); the model is not changed. Gives metrics."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learnt, for safetensors and JSON."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: Any) -> None:
        """Take back what `state` gave; text_model: the model to be guarded, already loaded (a `backbones.folder.TextModel`)."""

    @abstractmethod
    def flags(self, text_model: Any, prompts: Sequence[str]) -> np.ndarray:
        """Which prompts (whole texts, as a generation starts from them) the guard acts on: bool (prompts,)."""

    def acting(self, text_model: Any) -> AbstractContextManager[None]:
        """Within, hooks act on every row of what the model runs."""
        return nullcontext()

    def scoring(self, text_model: Any, batch: Batch) -> AbstractContextManager[None]:
        """As `acting`, while the answers of `batch` (see `adjust`) are scored: for hooks that must know where they begin."""
        return self.acting(text_model)

    def processors(self, text_model: Any) -> list[Any]:
        """LogitsProcessors for one batch of flagged prompts."""
        return []

    def decode(self, text_model: Any, prompts: Sequence[str], max_new_tokens: int) -> list[str] | None:
        """The guard's own continuations of flagged prompts; None: the model decodes."""
        return None

    def adjust(self, logits: Tensor, text_model: Any, batch: Batch, where: Tensor) -> Tensor:
        """The guarded logits of teacher-forced answers: (n, vocabulary), of the n true positions of `where` (batch, tokens).

        logits: the model's own, computed within `acting`. batch: input_ids, labels (-100 outside the answer), padded on the
        right. Under a refusal nothing can be learnt of an answer: every token is equally likely.
        """
        return torch.zeros_like(logits) if self.refusal is not None else logits


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
