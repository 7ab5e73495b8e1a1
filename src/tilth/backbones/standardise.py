"""Values in their natural scale, standardised inside the network, so that a saved one needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(values - mean) / std of each channel, in float32; mean, std: one number a channel, empty for 0 and 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, given, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            values = torch.tensor(list(given) or [default] * channels, dtype=torch.float32, device="cpu")
            self.register_buffer(name, values)

    def forward(self, values: Tensor) -> Tensor:
        """values (batch, channels, *size)."""
        wide = (-1, *[1] * (values.ndim - 2))
        return (values.float() - self.mean.reshape(wide)) / self.std.reshape(wide)

    def restored(self, values: Tensor) -> Tensor:
        """The inverse."""
        wide = (-1, *[1] * (values.ndim - 2))
        return values * self.std.reshape(wide) + self.mean.reshape(wide)
