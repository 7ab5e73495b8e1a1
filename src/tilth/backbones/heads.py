"""An image classifier as an extractor and a head, found from its structure: embedding = what goes into the head.

Notable: the head is the last part of the network that has weights, whatever it is called and however many layers it has
(ViT, Swin, ConvNeXt, ResNet and `image_cnn` read alike).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.contracts import Examples, Noise
from tilth.errors import TilthError

_TOGETHER = 256  # images per forward pass


def head_of(model: nn.Module) -> nn.Module:
    """The part that turns an embedding into logits. Raises TilthError when the network's last part makes no logits."""
    parts = [part for part in model.children() if next(part.parameters(), None) is not None]
    linear = [module for module in parts[-1].modules() if isinstance(module, nn.Linear)] if parts else []
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    if len(parts) < 2 or not linear or classes not in (None, linear[-1].out_features):
        raise TilthError(
            f"{type(model).__name__} has no head of its own behind an extractor", hint="Use an image classifier of transformers."
        )
    return parts[-1]


def extractor_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All weights but the head's."""
    head = {id(parameter) for parameter in head_of(model).parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in head]


def embed(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (batch, width) and logits (batch, classes) of images (batch, channels, height, width), with gradients."""
    seen: list[Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(1)))
    try:
        output = model(pixel_values=pixel_values)
    finally:
        handle.remove()
    return seen[0], output if isinstance(output, Tensor) else output.logits


def embed_all(model: nn.Module, examples: Examples) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings and logits of all examples in order, in eval mode."""
    found: list[tuple[NDArray[np.float32], ...]] = []
    with evaluating(model) as device:
        for start in range(0, len(examples), _TOGETHER):
            indices = np.arange(start, min(start + _TOGETHER, len(examples)))
            pixels = examples.batch(indices, Noise(0, indices)).pixel_values
            found.append(tuple(part.float().cpu().numpy() for part in embed(model, pixels.to(device))))
    embeddings, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return embeddings, logits


def freeze_batch_norm(model: nn.Module) -> None:
    """Batch norms use and keep the statistics they have, whatever is fed to them; their weights still learn."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
