"""What a causal Mamba encoder becomes after pre-training: one that reads its patches along rows and columns, both ways."""

from __future__ import annotations

import torch
from torch import nn

from tilth.backbones.mamba import copy_to_directions
from tilth.backbones.patches import PatchEncoder, PatchEncoderConfig
from tilth.errors import TilthError

FOUR = ("forward", "backward", "columns", "columns_backward")


def four_way(encoder: PatchEncoder, *, class_token: bool = False) -> PatchEncoder:
    """RoMA's encoder in use (arXiv 2503.10392): every direction starts from the one scan that was trained.

    class_token: a fresh token in the middle of the patches, which stays there in every direction, instead of the mean of all
    patches; drawn from torch's generator, to be fine-tuned. Whatever else was trained is copied, the last norm too, which RoMA's
    objective leaves as it was. The encoder itself is not changed. Raises TilthError unless it scans pictures in one direction.
    """
    config = encoder.config
    if config.mixer != "mamba" or len(config.directions) != 1 or any(len(given["size"]) != 2 for given in config.inputs):
        raise TilthError(
            "only an encoder of pictures with one scan can be made four-way",
            hint="Its mixer must be 'mamba', its directions one.",
        )
    if config.class_token:
        raise TilthError("this encoder has a class token already, so it was not trained block by block")
    pooling = "class" if class_token else "mean"
    settings = {**config.to_dict(), "directions": list(FOUR), "class_token": class_token, "pooling": pooling}
    made = PatchEncoder(PatchEncoderConfig.from_dict(settings))
    copied = set(copy_to_directions(encoder, made))
    trained = encoder.state_dict()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name not in copied and name != "class_token":
                value.copy_(trained[name])
    nn.Module.to(made, encoder.device, encoder.dtype)
    return made.train(encoder.training)
