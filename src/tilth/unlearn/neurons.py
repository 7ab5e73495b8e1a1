"""What single neurons do over a set of examples: means and standard deviations, streamed, padding left out.

Notable: moments of parts are merged (Chan, Golub and LeVeque, 1979), so neither the size of the batches nor their order changes
them and no activation is kept; float32 whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.backbones.states import inputs_of
from tilth.contracts import Batch, Examples
from tilth.unlearn.likelihood import IGNORED
from tilth.unlearn.reference import batches_in_order


class Moments:
    """Mean and standard deviation of each feature over all rows it was shown: count, mean (features,), spread (features,)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def update(self, values: Tensor) -> None:
        """values: (rows, features)."""
        if not len(values):
            return
        values = values.float()
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if not self.count:
            self.count, self.mean, self.squares = len(values), mean, squares
            return
        total = self.count + len(values)
        gap = mean - self.mean
        self.squares = self.squares + squares + gap.square() * (self.count * len(values) / total)
        self.mean = self.mean + gap * (len(values) / total)
        self.count = total

    @property
    def spread(self) -> Tensor:
        """Standard deviation, unbiased."""
        return (self.squares / max(self.count - 1, 1)).sqrt()


@contextmanager
def watching(
    modules: Sequence[nn.Module], side: Literal["input", "output"], told: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Within, told(number of the module, its input or output) at each of their calls."""
    with ExitStack() as stack:
        for number, module in enumerate(modules):

            def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor, number: int = number) -> None:
                told(number, args[0] if side == "input" else output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


def token_moments(
    model: Any, modules: Sequence[nn.Module], examples: Examples, side: Literal["input", "output"], *, absolute: bool = False
) -> list[Moments]:
    """Of each module's input or output features (of their absolute values) over all tokens of the examples."""
    found = [Moments() for _ in modules]
    with evaluating(model) as device:
        for batch in batches_in_order(examples):
            batch = batch.to(device)
            kept = real_tokens(batch)

            def told(number: int, values: Tensor, kept: Tensor = kept) -> None:
                values = values[kept.to(values.device)]
                found[number].update(values.abs() if absolute else values)

            with watching(modules, side, told):
                model.base_model(**inputs_of(batch))
    return found


def real_tokens(batch: Batch) -> Tensor:
    """Which positions are not padding: bool (batch, tokens). Without a plain mask, the targets."""
    mask = batch.get("attention_mask")
    return mask.bool() if mask is not None and mask.ndim == 2 else batch.labels != IGNORED
