"""TokenUnify: one network rebuilds what is hidden at random, what comes next, and all that comes after."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from tilth.backbones.standardise import Standardise
from tilth.batches.images.microscopy import degraded
from tilth.batches.images.pictures import natural
from tilth.batches.patches.corruption import NEXT, RANDOM, Corruption, corrupted, drawn, spread
from tilth.batches.patches.patchify import grid_of, patchify
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.heads import one
from tilth.registry import Fraction, NonNegative, PositiveInt
from tilth.traits import Traits


@method("pretrain", "token_unify", systems=[47])
class TokenUnify(Objective):
    """L = mean over examples of the mean squared error of the patches an example is asked for   (arXiv 2405.16847, section 3)

    Each example is corrupted in one of three ways (`batches.patches.corruption`): at random, with a share of `mask_ratio` hidden; all
    from a cut on hidden and the first of them asked for (next); the same and all of them asked for (next all). random, next, next_all:
    how often, relative to each other; 0: never. The paper's stages are two runs, random alone and then, started from it, the others.
    patch: sides of a token, in the order of the axes. fill: what hidden patches hold, 'noise' of variance 1 or 'zero'. loss_on:
    'target', the patches asked for, or 'all' of them, as in the official code; next is about its one patch in both.
    output: 'sigmoid', for values in [0, 1]; or 'linear', for any, in units of their deviation. degrade: share of the examples hidden at
    random that are also spoilt as micrographs are (`batches.images.microscopy`, of values in [0, 1]); the target stays clean. views: augmentation of input
    and target alike.

    Deviates from the official code, which asks for the next patch through a small network of its own, of one input size, and for
    next and next all together at every cut: here one output answers all three, so any network and size will do.
    batch: pixel_values (batch, channels, *size), keys (batch,); the network's `.logits` have the shape of its input.
    """

    traits = Traits(
        family="hybrid",
        target="pixels of hidden, next and all later patches",
        guard="fixed target",
        masking="random and causal",
    )

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        random: NonNegative = 1.0,
        next: NonNegative = 1.0,
        next_all: NonNegative = 1.0,
        patch: tuple[PositiveInt, ...] = (4, 16, 16),
        mask_ratio: tuple[Fraction, Fraction] = (0.4, 0.4),
        fill: Literal["noise", "zero"] = "noise",
        loss_on: Literal["target", "all"] = "target",
        output: Literal["sigmoid", "linear"] = "sigmoid",
        degrade: Fraction = 0.0,
        views: Annotated[Configured, Kind("views")] = use("views", "volumes", flip=0.5, rot90=0, intensity=0),
    ) -> None:
        super().__init__(model)
        weights = (random, next, next_all)
        if not sum(weights):
            raise TilthError(
                "nothing is asked of any example", where="token_unify", hint="Set 'random', 'next' or 'next_all' above 0."
            )
        if mask_ratio[0] > mask_ratio[1] or not mask_ratio[1]:
            raise TilthError(f"from {mask_ratio[0]} to {mask_ratio[1]} is no range of shares", where="token_unify.mask_ratio")
        mean, std = _statistics(model)
        if output == "sigmoid" and any(not 0 <= value <= 1 for value in mean):
            raise TilthError(
                f"a sigmoid cannot rebuild values of mean {max(mean, key=abs):.3g}", where="token_unify.output",
                hint="Use output 'linear', or data in bytes or between 0 and 1.",
            )  # fmt: skip
        if degrade and output == "linear":
            raise TilthError(
                "faults of micrographs are of values in [0, 1]",
                where="token_unify.degrade",
                hint="Use output 'sigmoid', or degrade 0.",
            )
        self.weights, self.patch, self.mask_ratio = tuple(weight / sum(weights) for weight in weights), tuple(patch), mask_ratio
        self.fill, self.loss_on, self.output, self.degrade, self.views = fill, loss_on, output, degrade, views.build()
        self.scale = Standardise(len(mean), *((mean, std) if output == "linear" else ((), ())))

    def forward(self, batch: Batch) -> Loss:
        """The loss; raises TilthError where the patch does not divide the input, or the network has another number of outputs."""
        pixels, values, corruption, shown = self.asked(batch)
        errors = patchify((self.told(shown) - values).square(), self.patch).mean(2)
        asked = corruption.target
        if self.loss_on == "all":
            asked = asked | (corruption.way != NEXT)[:, None]
        each = (errors * asked).sum(1) / asked.sum(1).clamp(min=1)
        return Loss(each.mean(), count=len(pixels))

    def asked(self, batch: Batch) -> tuple[Tensor, Tensor, Corruption, Tensor]:
        """(the view in natural scale, its values as they are to be told, how it is corrupted, what the network is shown)."""
        pixels, keys = natural(batch.pixel_values), batch["keys"]
        if self.training:
            pixels = one(self.views(pixels, keys), "token_unify")
        corruption = drawn(keys, prod(grid_of(pixels.shape[2:], self.patch)), self.weights, self.mask_ratio)
        values = seen = self.scale(pixels)
        if self.degrade:
            seen = torch.where(_wide(corruption.way == RANDOM, seen), degraded(seen, keys, self.degrade), seen)
        return pixels, values, corruption, self.shown(seen, corruption.hidden, keys)

    def shown(self, values: Tensor, hidden: Tensor, keys: Tensor) -> Tensor:
        """values (batch, channels, *size) without the hidden patches (batch, tokens), in natural scale."""
        return self.scale.restored(corrupted(values, hidden, self.patch, keys, self.fill))

    def told(self, shown: Tensor) -> Tensor:
        """What the network makes of it, float32 (batch, channels, *size)."""
        logits: Tensor = self.model(pixel_values=shown).logits.float()
        if logits.shape != shown.shape:
            raise TilthError(
                f"the network turns {tuple(shown.shape)} into {tuple(logits.shape)}", where="token_unify",
                hint="It must have as many outputs as channels, at the size of the input.",
            )  # fmt: skip
        return logits.sigmoid() if self.output == "sigmoid" else logits

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Sequence[Sequence[Tensor]]:
        """Each example, what is seen of it, and the same with what is asked for as predicted."""
        pixels, values, corruption, shown = self.asked(batch)
        filled = torch.where(spread(corruption.target, values, self.patch), self.told(shown), self.scale(shown))
        rows = (pixels, shown.clamp(pixels.amin(), pixels.amax()), self.scale.restored(filled))
        return [list(row) for row in zip(*rows, strict=True)]


def _statistics(model: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of what a network reads, as its configuration has them."""
    config = getattr(model, "config", None)
    given = getattr(model, "given", None) or vars(config) if config is not None else {}
    channels = given.get("num_channels") or given.get("channels") or 1
    return list(given.get("mean") or [0.0] * channels), list(given.get("std") or [1.0] * channels)


def _wide(chosen: Tensor, like: Tensor) -> Tensor:
    return chosen.reshape(-1, *[1] * (like.ndim - 1))
