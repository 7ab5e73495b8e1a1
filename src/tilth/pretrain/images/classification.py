"""Supervised classification of images: the plain way to a classifier, and on from one."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn import functional as F

from tilth.backbones.heads import extractor_parameters
from tilth.contracts import Batch, Loss, Objective, method


@method("pretrain", "classification", systems=[19, 35])
class Classification(Objective):
    """L = mean over images of -log p(class | image).

    train: 'all' weights, or the 'head' alone (the repair of LAF+R on a few labelled images: arXiv 2404.00506, section 4.4).
    batch: pixel_values (batch, channels, height, width); labels (batch,): index of the class
    """

    def __init__(self, model: nn.Module, /, *, train: Literal["all", "head"] = "all") -> None:
        super().__init__(model)
        if train == "head":
            for parameter in extractor_parameters(model):
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> Loss:
        output = self.model(pixel_values=batch.pixel_values)
        logits = getattr(output, "logits", output)
        loss = F.cross_entropy(logits.float(), batch.labels)
        return Loss(loss, count=len(batch.labels), accuracy=(logits.argmax(1) == batch.labels).float().mean())
