"""Two dates in the channels of one picture: the first's, the second's, and at the end those that both see."""

from __future__ import annotations

import torch
from torch import Tensor

from tilth.contracts import Sample
from tilth.errors import TilthError


def two_dates(values: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """(batch, channels, height, width) -> of each date (batch, its channels and the `shared` last ones, height, width)."""
    each = (values.shape[1] - shared) // 2
    before, after, both = values.split([each, each, shared], 1)
    return torch.cat([before, both], 1), torch.cat([after, both], 1)


def channels_of_a_date(channels: int, shared: int) -> int:
    """Channels of each of the two pictures that `two_dates` gives."""
    return (channels - shared) // 2 + shared


def checked_dates(sample: Sample, shared: int, where: str) -> None:
    """TilthError for channels that are not two dates and `shared` more."""
    if sample.channels <= shared or (sample.channels - shared) % 2:
        raise TilthError(
            f"{sample.channels} channels, {shared} of them shared, are not two dates", where=f"{where}.shared",
            hint="Choose two dates with the setting 'keep' of the batches.",
        )  # fmt: skip
