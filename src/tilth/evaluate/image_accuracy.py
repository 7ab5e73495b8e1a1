"""How often a classifier of images is right, at the size it was trained at or at another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import load
from tilth.backbones.swin import SwinEncoder, resized
from tilth.batches.images.labelled import ImageRows
from tilth.context import Context
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method, use
from tilth.errors import TilthError
from tilth.registry import PositiveInt

_TOGETHER = 250  # images per forward pass


@method("benchmark", "image_accuracy", systems=[52])
class ImageAccuracy(Benchmark):
    """`accuracy` of a classifier of images on `test`."""

    def __init__(self, *, test: CorpusRef, batches: Annotated[Configured, Kind("batches")] = use("batches", "images")) -> None:
        self.test, self.batches = test, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        rows = self.batches.build().build(context.corpus(self.test), None, context)
        return Scores({"accuracy": accuracy(load(model).model, rows)})


@method("benchmark", "resolution_transfer", systems=[52])
class ResolutionTransfer(Benchmark):
    """What a Swin classifier loses when pictures and windows grow and nothing is tuned   (arXiv 2111.09883, section 4.3)

    size: height and width that the test images are brought to (bilinear); window: sides of the windows there. Metrics: accuracy
    as it was trained, resized_accuracy, and drop, their difference.
    """

    def __init__(
        self,
        *,
        test: CorpusRef,
        size: PositiveInt,
        window: PositiveInt,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "images"),
    ) -> None:
        self.test, self.size, self.window, self.batches = test, size, window, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the model is not a `picture_classifier` over a `swin_v2`, or the window does not tile its maps."""
        network = load(model).model
        encoder = getattr(network, "encoder", None)
        if not isinstance(encoder, SwinEncoder):
            raise TilthError(
                "only a 'picture_classifier' over a 'swin_v2' encoder can be moved to other windows", where=str(model)
            )
        rows = self.batches.build().build(context.corpus(self.test), None, context)
        before = accuracy(network, rows)
        network.encoder = resized(encoder, self.size, self.window)
        after = accuracy(network, rows, self.size)
        return Scores({"accuracy": before, "resized_accuracy": after, "drop": before - after})


def accuracy(network: nn.Module, rows: ImageRows, size: int | None = None) -> float:
    """Share of images whose most probable class is theirs; size: what they are brought to first."""
    with evaluating(network) as device:
        right = torch.zeros((), dtype=torch.int64, device=device)
        for start in range(0, len(rows), _TOGETHER):
            indices = np.arange(start, min(start + _TOGETHER, len(rows)))
            batch = rows.batch(indices, Noise(0, indices)).to(device)
            values = batch.pixel_values
            if size is not None:
                values = F.interpolate(values, (size, size), mode="bilinear", align_corners=False, antialias=True)
            right += (network(pixel_values=values).logits.argmax(1) == batch.labels).sum()
    return right.item() / len(rows)
