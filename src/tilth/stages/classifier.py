"""Put a head on an encoder, so that it can be trained to classify."""

import torch

from tilth.backbones.classifier import with_head
from tilth.backbones.folder import load, save
from tilth.backbones.picture_features import encoder_of
from tilth.context import Context
from tilth.contracts import ModelRef, Stage, method
from tilth.registry import PositiveInt


@method("stage", "classifier", systems=[52])
class ClassifierOf(Stage):
    """model: an encoder of pictures, its weights kept, or one under another head, which goes; classes: outputs of the fresh linear head on its features.

    The head is not trained yet: a `pretrain` stage with the objective `classification` that starts here trains both.
    """

    gives = "model"

    def __init__(self, *, model: ModelRef, classes: PositiveInt) -> None:
        self.model, self.classes = model, classes

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: parameters."""
        torch.manual_seed(context.seed)
        encoder = load(context.model(self.model))
        network = with_head(encoder_of(encoder.model), self.classes)
        save(network, None, context.folder / "model", encoder.about)
        return {"parameters": float(sum(parameter.numel() for parameter in network.parameters()))}
