"""Let a causal Mamba encoder read pictures in four directions."""

import torch

from tilth.backbones.folder import load, save
from tilth.backbones.mamba_transfer import four_way
from tilth.backbones.patches import PatchEncoder
from tilth.context import Context
from tilth.contracts import ModelRef, Stage, method
from tilth.errors import TilthError


@method("stage", "four_way", systems=[7])
class FourWay(Stage):
    """model: an encoder pre-trained by `roma`; each direction gets a copy of its scan (`backbones.mamba_transfer.four_way`).

    class_token: a fresh one, to be fine-tuned; without it the mean of all patches stands for a picture.
    """

    gives = "model"

    def __init__(self, *, model: ModelRef, class_token: bool = False) -> None:
        self.model, self.class_token = model, class_token

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: parameters."""
        torch.manual_seed(context.seed)
        given = load(context.model(self.model))
        if not isinstance(given.model, PatchEncoder):
            raise TilthError("only a patch encoder can be made four-way", where=self.model)
        made = four_way(given.model, class_token=self.class_token)
        save(made, None, context.folder / "model", given.about)
        return {"parameters": float(sum(parameter.numel() for parameter in made.parameters()))}
