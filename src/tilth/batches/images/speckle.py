"""Speckle: the grain of coherent radar, noise that multiplies."""

from __future__ import annotations

import torch
from torch import Tensor

from tilth.batches.draws import uniform


def speckled(intensities: Tensor, keys: Tensor, looks: int, name: str = "speckle") -> Tensor:
    """Intensities (batch, ...) times gamma noise of mean 1 and variance 1 / looks, drawn for every pixel from its example's key.

    A gamma number of a whole number of looks is the mean of so many exponential ones.
    """
    draws = uniform(keys, name, looks, *intensities.shape[1:])
    return intensities * -torch.log1p(-draws).mean(1)
