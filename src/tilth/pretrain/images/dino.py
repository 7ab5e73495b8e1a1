"""DINO: a student learns from all crops of a picture what a teacher says of its large ones."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.blocks import initialise
from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.heads import pooled
from tilth.pretrain.teacher import Teacher, momentum
from tilth.registry import Fraction, NonNegativeInt, Positive, PositiveInt
from tilth.training import across
from tilth.traits import Traits


class Head(nn.Module):
    """Three layers, then the cosines to `out` prototypes: a last layer whose weights are normalised, of length 1 (section 3.1).

    Xavier's initialisation: at the paper's widths about its standard deviation of 0.02, and right for narrower heads too.
    """

    def __init__(self, source: int, out: int, *, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(source, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last = nn.Linear(bottleneck, out, bias=False)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(n, source) -> (n, out)."""
        return F.linear(F.normalize(self.layers(x).float(), dim=-1), F.normalize(self.last.weight, dim=-1)).float()


def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over pairs of different views and over examples of -sum p_teacher log p_student.

    student (views, batch, out): log-probabilities; teacher (large views, batch, out): probabilities of the first of these views.
    """
    count = len(teacher)
    pairs = count * len(student) - count
    own = (teacher * student[:count]).sum()
    return (own - (teacher.sum(0) * student.sum(0)).sum()) / (pairs * student.shape[1])


@method("pretrain", "dino", systems=[88])
class DINO(Objective):
    """L = -mean over pairs of views u != v of sum softmax((g_t(u) - c) / tau_t) log softmax(g_s(v) / tau_s)   (arXiv 2104.14294)

    u: the first `global_views` of a picture's views, v: all of them. The centre c <- m c + (1 - m) mean g_t(u), over the examples of
    all processes and micro-batches of a step. tau_t: rises linearly from `warmup_temperature` to `teacher_temperature` over
    `temperature_steps` (30 epochs of ImageNet in batches of 1024 unless set). momentum: of the teacher, rising to 1 over
    `momentum_steps`, or constant without. out, head_width, bottleneck: of the heads, which are dropped afterwards. views: at least
    two for each picture, large ones first. Without a centre (centre_momentum 1) or with a teacher no sharper than the student it
    collapses; `teacher_entropy` in the log then goes to 0 or to log(out).
    The last layer learns from the first step on (the official code holds it for an epoch). The teacher is kept, as in the paper.
    batch: pixel_values (batch, channels, height, width), keys (batch,)
    """

    traits = Traits(
        family="self-distillation",
        target="the teacher's distribution of other views",
        guard="centring and sharpening",
        positives="other views of the picture",
        teacher=True,
    )
    model: PatchEncoder
    centre: Tensor
    temperature: Tensor
    pending: Tensor

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        out: PositiveInt = 65536,
        head_width: PositiveInt = 2048,
        bottleneck: PositiveInt = 256,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.07,
        warmup_temperature: Positive = 0.04,
        temperature_steps: NonNegativeInt = 37_500,
        centre_momentum: Fraction = 0.9,
        momentum: Fraction = 0.996,
        momentum_steps: PositiveInt | None = None,
        global_views: PositiveInt = 2,
        views: Annotated[Configured, Kind("views")] = use("views", "multi_crop"),
    ) -> None:
        super().__init__(model)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.warmup_temperature, self.temperature_steps = warmup_temperature, temperature_steps
        self.centre_momentum, self.momentum, self.momentum_steps = centre_momentum, momentum, momentum_steps
        self.global_views, self.views = global_views, views.build()
        self.head = Head(model.config.hidden_size, out, hidden=head_width, bottleneck=bottleneck)
        self.teacher, self.teacher_head = Teacher(model), Teacher(self.head)
        self.register_buffer("centre", torch.zeros(out))
        self.register_buffer("temperature", torch.tensor(self.temperature_after(0)))
        # The sum of a step's outputs and their number. Kept apart from the centre, which a step must not move under its own feet.
        self.register_buffer("pending", torch.zeros(out + 1))

    @property
    def kept(self) -> nn.Module:
        """The teacher."""
        return self.teacher.network

    def forward(self, batch: Batch) -> Loss:
        """Mean over pictures; adds the teacher's outputs to what the centre will be made of. TilthError for a single view."""
        views = self.views(natural(batch.pixel_values), batch["keys"])
        if len(views) < 2:
            raise TilthError("DINO compares views, and there is but one", where="views", hint="Use 'multi_crop' or 'simclr'.")
        with torch.no_grad():
            outputs = self.teacher_head(torch.cat(pooled(self.teacher, views[: self.global_views])))
            if self.training:
                self.pending += torch.cat([outputs.sum(0), outputs.new_full((1,), len(outputs))])
            teacher = ((outputs - self.centre) / self.temperature).softmax(-1).unflatten(0, (-1, len(views[0])))
        seen = pooled(self.model, views)
        student = self.head(torch.cat(seen))
        student = (student / self.student_temperature).log_softmax(-1).unflatten(0, (len(views), -1))
        entropy = -torch.special.xlogy(teacher, teacher).sum(-1).mean()
        return Loss(cross_entropy(student, teacher), count=len(views[0]), teacher_entropy=entropy, **signs(self, seen[0]))

    def temperature_after(self, step: int) -> float:
        """The teacher's temperature once `step` steps are done."""
        share = min(1.0, step / self.temperature_steps) if self.temperature_steps else 1.0
        return self.warmup_temperature + share * (self.teacher_temperature - self.warmup_temperature)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The centre, the temperature and both parts of the teacher move on."""
        pending = across.total(self.pending, True)
        self.centre.lerp_(pending[:-1] / pending[-1].clamp(min=1), 1 - self.centre_momentum)
        self.pending.zero_()
        self.temperature.fill_(self.temperature_after(step))
        rate = momentum(step, self.momentum_steps, self.momentum)
        self.teacher.follow(self.model, rate)
        self.teacher_head.follow(self.head, rate)
