"""Frozen features of pictures, volumes or signals: one vector each, from any encoder that gives `Features`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tilth.backbones.classifier import PictureClassifier
from tilth.backbones.dense import DenseClassifier
from tilth.backbones.evaluating import evaluating
from tilth.batches.images.pictures import natural
from tilth.contracts import Examples, Noise
from tilth.errors import TilthError

Pool = Literal["encoder", "mean", "class", "tokens"]


def encoder_of(model: Any) -> Any:
    """What is under the head of a network of pictures or volumes; an encoder is its own."""
    return model.encoder if isinstance(model, PictureClassifier | DenseClassifier) else model


def picture_features(
    model: Any, examples: Examples, *, layer: int | None = None, pool: Pool = "encoder", batch_size: int = 256
) -> NDArray[np.float32]:
    """One vector per example, in order: float32 (examples, width).

    layer: the block (from 1) whose output is pooled, None: the encoder's normalised last one. pool: 'encoder' as its configuration
    says, 'mean' over patches, 'class' the class token, 'tokens' all patches' in a row, which keeps what lies where as pixels do (the
    width is theirs together). Raises TilthError for a class token that is not there.
    """
    encoder = encoder_of(model)
    found: NDArray[np.float32] | None = None
    with evaluating(encoder) as device:
        for start in range(0, len(examples), batch_size):
            indices = np.arange(start, min(start + batch_size, len(examples)))
            pixels = natural(examples.batch(indices, Noise(0, indices)).pixel_values.to(device))
            vectors = _pooled(encoder, pixels, layer, pool).float().cpu().numpy()
            if found is None:
                found = np.empty((len(examples), vectors.shape[1]), np.float32)
            found[indices] = vectors
    return found if found is not None else np.zeros((0, int(encoder.config.hidden_size)), np.float32)


def _pooled(encoder: Any, pixels: torch.Tensor, layer: int | None, pool: Pool) -> torch.Tensor:
    features = encoder(pixels, layers=() if layer is None else (layer,))
    if pool == "class" and features.summary is None:
        raise TilthError("this encoder has no class token to take", where="pool", hint="Use 'mean'.")
    if layer is None:
        patches, told, whole = features.tokens, features.summary, features.pooled
    else:
        patches, told = features.layers[0], None
        if features.summary is not None:
            at = (patches.shape[1] - 1) // 2 if encoder.config.mixer == "mamba" else 0
            told, patches = patches[:, at], torch.cat([patches[:, :at], patches[:, at + 1 :]], 1)
        whole = told if told is not None and encoder.config.pooling == "class" else patches.mean(1)
    if pool == "tokens":
        return patches.flatten(1)  # type: ignore[no-any-return]
    return patches.mean(1) if pool == "mean" else told if pool == "class" else whole  # type: ignore[no-any-return]
