"""How well a masked autoencoder of several scales rebuilds whole pictures, larger than it saw them.

Notable: the decoder is no part of a saved model, so it is read from the last checkpoint of the training that made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tilth.backbones.evaluating import computing_device
from tilth.backbones.folder import load
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import Mask
from tilth.batches.patches.patchify import grid_of, patchify
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Objective, Scores, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.sat_mae_pp import SatMAEPP
from tilth.pretrain.images.upsampling import pyramid
from tilth.registry import PositiveInt, configure
from tilth.training.checkpoints import checkpoints

if TYPE_CHECKING:
    from tilth.context import Context


@method("benchmark", "upsampling_error", systems=[29])
class UpsamplingError(Benchmark):
    """Error of whole pictures rebuilt from their seen tokens, at the size that was seen and at 2, 4, ... times it.

    Metrics: hidden_error, mean squared error of hidden tokens; error_2x, error_4x ..., mean absolute error over all pixels, of the
    model's upsampler, or without one (`multi_scale: 0`) of its prediction enlarged by bicubic interpolation; error_2x_pasted ...:
    the same, but with the seen patches put into the prediction before it is enlarged bicubically: an autoencoder is not taught to
    rebuild these. All of standardised pixels.

    data: pictures as large as those of the training. model: made by `pretrain` with `sat_mae_pp`; TilthError for others, and
    where its last checkpoint is gone. Masks are drawn with the seed. batches: of the data; batch_size changes nothing.
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "pictures"),
        batch_size: PositiveInt = 128,
    ) -> None:
        self.data, self.batches, self.batch_size = data, batches, batch_size

    def __call__(self, model: Path, context: Context) -> Scores:
        objective = trained(model).to(computing_device())
        if not isinstance(objective, SatMAEPP):
            raise TilthError(
                "this model was not made by 'sat_mae_pp'", where=str(model), hint="It alone rebuilds larger pictures."
            )
        examples = self.batches.build().build(context.corpus(self.data), None, context)
        sums: dict[str, float] = {}
        for start in range(0, len(examples), self.batch_size):
            indices = np.arange(start, min(start + self.batch_size, len(examples)))
            batch = examples.batch(indices, Noise(context.seed, indices)).to(objective.model.device)
            for name, value in errors(objective, natural(batch.pixel_values), batch["keys"]).items():
                sums[name] = sums.get(name, 0.0) + value * len(indices)
        return Scores({name: value / len(examples) for name, value in sums.items()})


@torch.inference_mode()
def errors(objective: SatMAEPP, pixels: Tensor, keys: Tensor) -> dict[str, float]:
    """The metrics on one batch."""
    levels = pyramid(pixels, objective.scales)
    embedding = objective.model.embedding(pixels)
    targets = [embedding.standardised(level) for level in levels]
    grid = grid_of(levels[0].shape[2:], objective.patch)
    mask = objective.mask(keys, grid[0] * grid[1])
    predicted = objective.predictions(levels[0], mask)
    found = {"hidden_error": objective.losses(predicted, targets, mask)["reconstruction"].item()}
    plain, pasted = (
        objective.picture(predicted, grid),
        objective.picture(seen_pasted(objective, predicted, targets[0], mask), grid),
    )
    learnt = objective.upsampler(plain) if objective.upsampler is not None else None
    for number, target in enumerate(targets[1:]):
        scale = 2 ** (number + 1)
        for name, picture in (("", plain), ("_pasted", pasted)):
            enlarged = (
                learnt[number] if learnt else F.interpolate(picture, scale_factor=scale, mode="bicubic", align_corners=False)
            )
            found[f"error_{scale}x{name}"] = (enlarged - target.index_select(1, objective.bands)).abs().mean().item()
    return found


def seen_pasted(objective: SatMAEPP, predicted: list[Tensor], target: Tensor, mask: Mask) -> list[Tensor]:
    """Predictions of the groups, with the tokens that were seen as they are."""
    hidden = mask.where().chunk(len(predicted), 1)
    truth = [patchify(target[:, group], objective.patch) for group in objective.groups]
    return [torch.where(h[:, :, None], p, t) for h, p, t in zip(hidden, predicted, truth, strict=True)]


def trained(model: Path) -> Objective:
    """The objective that a model of `pretrain` was trained with, as it was after the last step, with what it drops when saving."""
    text_model = load(model)
    newest = next(checkpoints(model.parent), None)
    history = text_model.about.get("history")
    if newest is None or not history:
        raise TilthError("the checkpoints of this model's training are not there", where=str(model), hint="Run its stage again.")
    objective: Objective = configure("pretrain", history[-1]["stage"]["objective"]).build(text_model.model)
    objective.load_state_dict(load_file(newest[1] / "model.safetensors"))
    return objective.eval()
