"""Put a head on an encoder, so that it can be trained to name every pixel."""

from typing import Any, cast

import torch

from tilth.backbones.dense import Head, with_dense_head
from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import ModelRef, Stage, method
from tilth.registry import PositiveInt


@method("stage", "dense_classifier", systems=[6])
class DenseClassifierOf(Stage):
    """model: an encoder of pictures or volumes, its weights kept; classes, head, taps: as of the backbone `dense_classifier`.

    The head is not trained yet: a `pretrain` stage with the objective `segmentation` that starts here trains both, or with
    `train: head` the head alone.
    """

    gives = "model"

    def __init__(
        self, *, model: ModelRef, classes: PositiveInt, head: Head = "linear", taps: tuple[PositiveInt, ...] = ()
    ) -> None:
        self.model, self.classes, self.head, self.taps = model, classes, head, taps

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: parameters."""
        torch.manual_seed(context.seed)
        encoder = load(context.model(self.model))
        network = with_dense_head(cast(Any, encoder.model), self.classes, self.head, self.taps)
        save(network, None, context.folder / "model", encoder.about)
        return {"parameters": float(sum(parameter.numel() for parameter in network.parameters()))}
