"""Rotation: by which of four right angles was a picture turned?"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.heads import one
from tilth.traits import Traits


@method("pretrain", "rotation", systems=[88])
class Rotation(Objective):
    """L = mean over pictures and r in {0, 90, 180, 270} degrees of -log p(r | picture turned by r)   (arXiv 1803.07728, equation 3)

    Every picture is seen in all four positions, which the paper found best; the classifier is one linear layer on the encoder's
    pooled features. views: augmentation, one view; it must be square.
    batch: pixel_values (batch, channels, height, width), keys (batch,)
    """

    traits = Traits(
        family="pretext",
        target="the angle a picture was turned by",
        guard="labels made from the data",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        self.views = views.build()
        self.head = nn.Linear(model.config.hidden_size, 4)

    def forward(self, batch: Batch) -> Loss:
        """Mean over the pictures in all four positions; TilthError for pictures that are not square."""
        pixels = one(self.views(natural(batch.pixel_values), batch["keys"]), "rotation")
        if pixels.shape[-1] != pixels.shape[-2]:
            shown = "x".join(map(str, pixels.shape[2:]))
            raise TilthError(f"'rotation' turns square pictures, not {shown} ones", where="pretrain.rotation.views")
        turned = torch.cat([pixels.rot90(turns, (2, 3)) for turns in range(4)])
        labels = torch.arange(4, device=pixels.device).repeat_interleave(len(pixels))
        logits = self.head(self.model(turned).pooled).float()
        return Loss(F.cross_entropy(logits, labels), count=len(pixels), accuracy=(logits.argmax(1) == labels).float().mean())
