"""BYOL: one view predicts what the encoder's moving average makes of the other; no negatives."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.contrast import unit
from tilth.pretrain.images.heads import pooled, projection, two
from tilth.pretrain.teacher import Teacher, momentum
from tilth.registry import Fraction, PositiveInt
from tilth.traits import Traits


@method("pretrain", "byol", systems=[88])
class BYOL(Objective):
    """L = mean over pictures of (2 - 2 cos(p(z), z')) + (2 - 2 cos(p(z'), z))   (arXiv 2006.07733, equation 2, made symmetric)

    z: projected by the learner, p: its predictor; on the right of each cosine stands the moving averages' projection of the other
    view, without gradient. head_width, head_out: of projector and predictor, two layers each; their norms see one view at a time.
    momentum: of the averages, rising to 1 as half a cosine over `momentum_steps` steps; give it the run's, None keeps it constant.
    views: augmentation, two views.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="self-distillation",
        target="the teacher's vector of the other view",
        guard="predictor and moving average",
        positives="the other view of the picture",
        teacher=True,
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        momentum: Fraction = 0.996,
        momentum_steps: PositiveInt | None = None,
        head_width: PositiveInt = 4096,
        head_out: PositiveInt = 256,
        views: Annotated[Configured, Kind("views")] = use("views", "byol"),
    ) -> None:
        super().__init__(model)
        self.momentum, self.momentum_steps, self.views = momentum, momentum_steps, views.build()
        self.projector = projection(model.config.hidden_size, head_width, head_out)
        self.predictor = projection(head_out, head_width, head_out)
        self.teacher, self.teacher_projector = Teacher(model), Teacher(self.projector)

    def forward(self, batch: Batch) -> Loss:
        """Mean over pictures and over both orders of the views; TilthError unless these are two."""
        views = two(self.views(natural(batch.pixel_values), batch["keys"]), "byol")
        seen = pooled(self.model, views)
        first, second = (self.predictor(self.projector(vectors)) for vectors in seen)
        targets = [self.teacher_projector(vectors) for vectors in pooled(self.teacher, views)]
        loss = disagreement(first, targets[1]) + disagreement(second, targets[0])
        return Loss(loss.mean(), count=len(loss), **signs(self, seen[0]))

    def after_step(self, step: int) -> None:
        """The teacher follows."""
        kept = momentum(step, self.momentum_steps, self.momentum)
        self.teacher.follow(self.model, kept)
        self.teacher_projector.follow(self.projector, kept)


def disagreement(predicted: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos of rows (n, width): (n,)."""
    return 2 - 2 * (unit(predicted) * unit(target)).sum(1)
