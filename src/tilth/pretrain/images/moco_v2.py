"""MoCo v2: a view finds the other view of its picture among those of a queue of earlier pictures."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.contrast import against_queue, unit
from tilth.pretrain.images.heads import projection, two
from tilth.pretrain.teacher import Teacher
from tilth.registry import Fraction, Positive, PositiveInt
from tilth.training.across import gather
from tilth.traits import Traits


@method("pretrain", "moco_v2", systems=[88])
class MoCoV2(Objective):
    """L = mean over pictures of -log [exp(q.k / t) / (exp(q.k / t) + sum over the queue of exp(q.n / t))]

    q: the first view through encoder and head; k: the second through their moving averages (arXiv 2003.04297; 1911.05722, equation
    1). temperature: t. momentum: of the averages. queue: keys of the latest pictures of all processes, random at first. head_width,
    head_out: of the projection head, two layers. views: augmentation, two views. Shuffling batches for batch norms has no place here:
    neither the encoder nor this head has any, so keys tell nothing of their batch.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="contrastive",
        target="the other view, by the teacher",
        guard="negatives",
        positives="the other view of the picture",
        negatives="a queue of earlier pictures",
        teacher=True,
        queue=True,
    )
    model: PatchEncoder
    queue: Tensor
    oldest: Tensor

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        temperature: Positive = 0.2,
        momentum: Fraction = 0.999,
        queue: PositiveInt = 65536,
        head_width: PositiveInt = 2048,
        head_out: PositiveInt = 128,
        views: Annotated[Configured, Kind("views")] = use("views", "simclr", scale=(0.2, 1.0), strength=0.5),
    ) -> None:
        super().__init__(model)
        self.temperature, self.momentum, self.views = temperature, momentum, views.build()
        self.head = projection(model.config.hidden_size, head_width, head_out, norm=False, bias=True)
        self.teacher, self.teacher_head = Teacher(model), Teacher(self.head)
        self.register_buffer("queue", unit(torch.randn(queue, head_out)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Loss:
        """Mean over pictures; keeps the keys for the queue. TilthError unless the views are two."""
        first, second = two(self.views(natural(batch.pixel_values), batch["keys"]), "moco_v2")
        vectors = self.model(first).pooled
        queries = self.head(vectors)
        keys = unit(self.teacher_head(self.teacher(second).pooled))
        loss = against_queue(queries, keys, self.queue, self.temperature).loss()
        if self.training:
            self.enqueue(gather(keys, True))
        loss.parts |= signs(self, vectors)
        return loss

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put keys (n, width) in place of the oldest, of which there may be fewer.

        In a new tensor: the backward pass needs the queue as it was, and a compiler may drop a copy made for it.
        """
        keys = keys[-len(self.queue) :]
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue = self.queue.index_copy(0, places, keys)
        self.oldest = (self.oldest + len(keys)) % len(self.queue)

    def after_step(self, step: int) -> None:
        """The keys' network follows, and the queue takes the newest keys."""
        self.teacher.follow(self.model, self.momentum)
        self.teacher_head.follow(self.head, self.momentum)
