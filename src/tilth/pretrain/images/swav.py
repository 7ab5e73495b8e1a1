"""SwAV: each view predicts to which prototypes other views of its picture were assigned, all prototypes being used alike."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.contrast import unit
from tilth.pretrain.images.heads import pooled, projection
from tilth.pretrain.images.sinkhorn import sinkhorn
from tilth.registry import Positive, PositiveInt
from tilth.training.parallel import local
from tilth.traits import Traits


@method("pretrain", "swav", systems=[88])
class SwAV(Objective):
    """L = mean over s of the two global views, v != s of all views, and pictures of -sum q_s log softmax(z_v C / t)

    C: prototypes of length 1; q: balanced assignments of the batch of all processes (`sinkhorn`), without gradient (arXiv 2006.09882,
    equations 2, 3 and 6). prototypes: how many; best several times the number of classes, and below the batch size unless that is
    large: there is no queue. temperature: t. epsilon: of the assignments, the smaller the harder; a loss that stays at
    log(prototypes) has collapsed, then the authors advise a smaller one (0.03). iterations: of Sinkhorn. head_width, head_out: of the
    projection head, two layers. views: augmentation, the first two views are the global ones. Unlike in the authors' code the
    prototypes are trained from the first step on.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="clustering",
        target="prototypes of the other views",
        guard="balanced assignment",
        positives="other views of the picture",
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        prototypes: PositiveInt = 3000,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: PositiveInt = 3,
        head_width: PositiveInt = 2048,
        head_out: PositiveInt = 128,
        views: Annotated[Configured, Kind("views")] = use("views", "multi_crop"),
    ) -> None:
        super().__init__(model)
        self.temperature, self.epsilon, self.iterations, self.views = temperature, epsilon, iterations, views.build()
        self.head = projection(model.config.hidden_size, head_width, head_out, bias=True)
        self.prototypes = nn.Linear(head_out, prototypes, bias=False)
        self.normalise()

    def forward(self, batch: Batch) -> Loss:
        """Mean over pictures and over pairs of views."""
        views = self.views(natural(batch.pixel_values), batch["keys"])
        if len(views) < 2:
            raise TilthError("'swav' compares views, but one was made", where="pretrain.swav.views", hint="Try 'multi_crop'.")
        seen = pooled(self.model, views)
        vectors = unit(self.head(torch.cat(seen)))
        scores = self.prototypes(vectors).float().chunk(len(views))
        likely = [(score / self.temperature).log_softmax(1) for score in scores]
        terms: list[Tensor] = []
        for number in range(2):
            assigned = sinkhorn(scores[number].detach(), self.epsilon, self.iterations, self.training)
            terms += [-(assigned * logs).sum(1).mean() for other, logs in enumerate(likely) if other != number]
        return Loss(torch.stack(terms).mean(), count=len(scores[0]), **signs(self, seen[0]))

    @torch.no_grad()
    def normalise(self) -> None:
        """Prototypes to length 1; FSDP shards between rows, so each process does its own."""
        weight = local(self.prototypes.weight.detach())
        weight.copy_(F.normalize(weight, dim=1))

    def after_step(self, step: int) -> None:
        """Prototypes are brought back to length 1."""
        self.normalise()
