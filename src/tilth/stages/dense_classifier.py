"""Put a head on an encoder, or new outputs on a network that has a value for every pixel, so that it can be trained to name them."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from tilth.backbones.dense import Head, with_dense_head
from tilth.backbones.folder import load, save
from tilth.backbones.seg_mamba import SegMamba
from tilth.context import Context
from tilth.contracts import ModelRef, Stage, method
from tilth.registry import PositiveInt


@method("stage", "dense_classifier", systems=[6, 47])
class DenseClassifierOf(Stage):
    """model: an encoder of pictures or volumes, its weights kept; classes, head, taps: as of the backbone `dense_classifier`. Or a
    `seg_mamba`, whose last layer is drawn anew with as many outputs as `classes`; all else is kept, and it takes no head.

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
        network: PreTrainedModel
        if isinstance(encoder.model, SegMamba):
            network = encoder.model.with_outputs(self.classes)
        else:
            network = with_dense_head(cast(Any, encoder.model), self.classes, self.head, self.taps)
        save(network, None, context.folder / "model", encoder.about)
        return {"parameters": float(sum(parameter.numel() for parameter in network.parameters()))}
