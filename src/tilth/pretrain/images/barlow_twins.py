"""Barlow Twins: what two views have in common is kept, and each number of a vector says something else."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.heads import pooled, projection, two
from tilth.registry import NonNegative, PositiveInt
from tilth.training.across import count, mean, total
from tilth.traits import Traits


@method("pretrain", "barlow", systems=[88])
class BarlowTwins(Objective):
    """L = sum over i of (1 - C_ii)^2 + redundancy * sum over i != j of C_ij^2   (arXiv 2103.03230, equations 1 and 2)

    C: correlations of the two views' projections over the batch of all processes, each standardised by its own view's mean and
    deviation (with 1e-5 added to the variance, so constant vectors have no correlation). redundancy: lambda. head_width, head_out: of
    the projection head, three layers; its norms see one view at a time. views: augmentation, two views. C is one micro-batch's:
    `accumulate` takes the mean of several losses, not the loss of all.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="decorrelation",
        target="the other view",
        guard="outputs decorrelated over the batch",
        positives="the other view of the picture",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        redundancy: NonNegative = 0.005,
        head_width: PositiveInt = 8192,
        head_out: PositiveInt = 8192,
        views: Annotated[Configured, Kind("views")] = use("views", "byol"),
    ) -> None:
        super().__init__(model)
        self.redundancy, self.views = redundancy, views.build()
        self.head = projection(model.config.hidden_size, head_width, head_out, layers=3)

    def forward(self, batch: Batch) -> Loss:
        """The loss over the pictures of all processes; TilthError unless the views are two."""
        views = two(self.views(natural(batch.pixel_values), batch["keys"]), "barlow")
        seen = pooled(self.model, views)
        first, second = (self.head(vectors) for vectors in seen)
        found = correlation(first, second, self.training)
        diagonal = found.diagonal()
        invariance = (1 - diagonal).square().sum()
        shared = found.square().sum() - diagonal.square().sum()
        parts = {"invariance": invariance, "shared": shared, **signs(self, seen[0])}
        return Loss(invariance + self.redundancy * shared, count=len(first), **parts)


def correlation(first: Tensor, second: Tensor, training: bool) -> Tensor:
    """(width, width) of rows (n, width) each, of all processes. training: see `across.gather`."""
    with torch.autocast(first.device.type, enabled=False):
        # Both views beside each other, so that the processes exchange their statistics at once.
        rows = torch.stack([first, second], 1).float()
        centred = rows - mean(rows, training)
        left, right = (centred * (mean(centred.square(), training) + 1e-5).rsqrt()).unbind(1)
        return total(left.T @ right, training) / count(rows, training)
