"""SimCLR: two views of a picture are nearer to each other than to those of all other pictures."""

from __future__ import annotations

from typing import Annotated

import torch

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.contrast import two_views
from tilth.pretrain.images.heads import pooled, projection, two
from tilth.registry import Positive, PositiveInt
from tilth.traits import Traits


@method("pretrain", "simclr", systems=[88])
class SimCLR(Objective):
    """L = mean over views i of -log [exp(z_i.z_j / t) / sum over k != i of exp(z_i.z_k / t)]   (arXiv 2002.05709, equation 1)

    z: projected and of length 1; j: the other view of the same picture; k: all views in the batch of all processes. temperature: t,
    best between 0.1 and 0.5. head_width, head_out: of the projection head, two layers with a batch norm after each as in the authors'
    code. views: augmentation, two views. Negatives are those of one micro-batch: with `accumulate` they are fewer.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="contrastive",
        target="the other view",
        guard="negatives",
        positives="the other view of the picture",
        negatives="all other views of the batch",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        temperature: Positive = 0.1,
        head_width: PositiveInt = 2048,
        head_out: PositiveInt = 128,
        views: Annotated[Configured, Kind("views")] = use("views", "simclr"),
    ) -> None:
        super().__init__(model)
        self.temperature, self.views = temperature, views.build()
        self.head = projection(model.config.hidden_size, head_width, head_out, last_norm=True)

    def forward(self, batch: Batch) -> Loss:
        """Mean over the pictures of all processes, each against all others; TilthError unless the views are two."""
        views = two(self.views(natural(batch.pixel_values), batch["keys"]), "simclr")
        # One batch through the head: its norms see both views, as in the authors' code.
        vectors = pooled(self.model, views)
        first, second = self.head(torch.cat(vectors)).chunk(2)
        loss = two_views(first, second, self.temperature, self.training).loss()
        loss.parts |= signs(self, vectors[0])
        return loss
