"""How much worse a network predicts what lies further from what it sees: token by token from its own predictions, or all at once."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.evaluating import computing_device
from tilth.backbones.folder import load
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import pick
from tilth.batches.patches.patchify import grid_of, patchify, unpatchify
from tilth.context import Context
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.token_unify import TokenUnify
from tilth.registry import PositiveInt, configure


@method("benchmark", "horizon", systems=[47])
class Horizon(Benchmark):
    """Squared error of the tokens at distances 1 to `distance` from a cut, all from the cut on hidden   (arXiv 2405.16847, section 3)

    rolled: each token is predicted from those before it, the network's own predictions where they are hidden; else all are read off
    one prediction. cuts: how many cuts, spread evenly over those that leave room. objective: `token_unify` with the patch, fill and
    output that the network was trained with; None: as its history has them.
    Metrics: mse_1 ... mse_<distance>, means over rows of `test` and cuts; growth: the last over the first.
    """

    def __init__(
        self,
        *,
        test: CorpusRef,
        rolled: bool = True,
        distance: PositiveInt = 16,
        cuts: PositiveInt = 4,
        together: PositiveInt = 64,
        objective: Annotated[Configured, Kind("pretrain")] | None = None,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "tiles"),
    ) -> None:
        if objective and not issubclass(objective.cls, TokenUnify):
            raise TilthError(f"'{objective.name}' does not predict tokens in an order", where="horizon.objective")
        self.test, self.rolled, self.distance, self.cuts = test, rolled, distance, cuts
        self.together, self.objective, self.batches = together, objective, batches

    @torch.inference_mode()
    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when an input has no more tokens than `distance`, and where nothing tells how the model was trained."""
        rows = self.batches.build().build(context.corpus(self.test), None, context)
        device = computing_device()
        text_model = load(model)
        how = self.objective or trained_with(text_model.about, model)
        objective = cast(TokenUnify, how.build(text_model.model).to(device).eval())
        total, seen = torch.zeros(self.distance, dtype=torch.float64, device=device), 0
        context.progress.start("predicting", len(rows), "examples")
        for start in range(0, len(rows), self.together):
            indices = np.arange(start, min(start + self.together, len(rows)))
            noise = Noise(0, indices)
            batch = rows.batch(indices, noise).to(device)
            pixels = natural(batch.pixel_values)
            tokens = prod(grid_of(pixels.shape[2:], objective.patch))
            if tokens <= self.distance:
                raise TilthError(f"there is no token at distance {self.distance} in {tokens}", where="horizon.distance")
            for cut in sorted(set(np.linspace(1, tokens - self.distance, self.cuts).round().astype(int).tolist())):
                found = errors(objective, pixels, batch["keys"], cut, self.distance, self.rolled)
                total, seen = total + found.double().sum(0), seen + len(found)
            context.progress.update(indices[-1] + 1)
        context.progress.end()
        each = (total / seen).tolist()
        context.exhibit(
            "curves", "Error by distance from what is seen", series={"rolled" if self.rolled else "at once": [[d, e] for d, e in enumerate(each, 1)]},
            x="tokens from the cut", y="mean squared error", log=False,
        )  # fmt: skip
        return Scores({**{f"mse_{d}": e for d, e in enumerate(each, 1)}, "growth": each[-1] / max(each[0], 1e-12)})


def trained_with(about: dict[str, Any], model: Path) -> Configured:
    """The settings of the last training by `token_unify` that tilth.json tells of; TilthError where it tells of none."""
    for entry in reversed(about.get("history", [])):
        given = entry.get("stage", {}).get("objective", {})
        if "token_unify" in given:
            return configure("pretrain", given)
    raise TilthError(
        "nothing tells how this model was taught to predict tokens", where=str(model),
        hint="Give the benchmark the setting 'objective', with the patch, fill and output of the training.",
    )  # fmt: skip


def errors(objective: TokenUnify, pixels: Tensor, keys: Tensor, cut: int, distance: int, rolled: bool) -> Tensor:
    """Mean squared errors (batch, distance) of tokens cut, cut + 1 ... of pixels (batch, channels, *size) in natural scale."""
    values = objective.scale(pixels)
    grid, patch = grid_of(pixels.shape[2:], objective.patch), objective.patch
    truth = patchify(values, patch)
    place = torch.arange(truth.shape[1], device=pixels.device).expand(len(pixels), -1)
    asked = place[:, cut : cut + distance]
    if not rolled:
        told = patchify(objective.told(objective.shown(values, place >= cut, keys)), patch)
        return (pick(told, asked) - pick(truth, asked)).square().mean(2)
    known = truth.clone()
    for token in range(cut, cut + distance):
        shown = objective.shown(unpatchify(known, grid, patch), place >= token, keys)
        known[:, token] = patchify(objective.told(shown), patch)[:, token]
    return (pick(known, asked) - pick(truth, asked)).square().mean(2)
