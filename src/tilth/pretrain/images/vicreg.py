"""VICReg: two views agree, every number varies over the batch, no two numbers vary together."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.heads import pooled, projection, two
from tilth.registry import NonNegative, PositiveInt
from tilth.training.across import count, mean, total
from tilth.traits import Traits


@method("pretrain", "vicreg", systems=[88])
class VICReg(Objective):
    """L = invariance * s(z, z') + variance * (v(z) + v(z')) + covariance * (c(z) + c(z'))   (arXiv 2105.04906, algorithm 1)

    s: mean squared difference; v: mean over numbers of max(0, 1 - sqrt(var + 1e-4)); c: sum of squared covariances of different
    numbers, over the width; all over the batch of all processes. The authors' released code halves v, their algorithm does not.
    head_width, head_out: of the expander, three layers; its norms see one view at a time. views: augmentation, two views. The
    statistics are one micro-batch's: `accumulate` takes the mean of several losses, not the loss of all.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="decorrelation",
        target="the other view",
        guard="variance and covariance over the batch",
        positives="the other view of the picture",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        invariance: NonNegative = 25.0,
        variance: NonNegative = 25.0,
        covariance: NonNegative = 1.0,
        head_width: PositiveInt = 8192,
        head_out: PositiveInt = 8192,
        views: Annotated[Configured, Kind("views")] = use("views", "byol"),
    ) -> None:
        super().__init__(model)
        self.invariance, self.variance, self.covariance, self.views = invariance, variance, covariance, views.build()
        self.head = projection(model.config.hidden_size, head_width, head_out, layers=3)

    def forward(self, batch: Batch) -> Loss:
        """The three terms over the pictures of all processes; TilthError unless the views are two."""
        views = two(self.views(natural(batch.pixel_values), batch["keys"]), "vicreg")
        seen = pooled(self.model, views)
        first, second = (self.head(vectors).float() for vectors in seen)
        agreement = F.mse_loss(first, second)
        spread, redundancy = collapse(torch.stack([first, second], 1), self.training)
        loss = self.invariance * agreement + self.variance * spread + self.covariance * redundancy
        parts = {"invariance": agreement, "variance": spread, "covariance": redundancy, **signs(self, seen[0])}
        return Loss(loss, count=len(first), **parts)


def collapse(rows: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """v and c of rows (n, views, width), each summed over views. training: see `across.gather`."""
    with torch.autocast(rows.device.type, enabled=False):
        centred = (rows - mean(rows, training)).transpose(0, 1)
        products = total(centred.transpose(1, 2) @ centred, training) / (count(rows, training) - 1)
        variances = products.diagonal(dim1=1, dim2=2)
        spread = F.relu(1 - (variances + 1e-4).sqrt()).mean(1).sum()
        shared = products.square().sum() - variances.square().sum()
        return spread, shared / rows.shape[-1]
