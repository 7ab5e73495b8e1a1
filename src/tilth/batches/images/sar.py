"""Radar pictures before a network sees them: limits, channels, slopes.

Notable: values are linear power (sigma0), never decibels; limits and constants assume it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilth.errors import TilthError

Channel = Literal["vv", "vh", "ratio"]
CLAMP = 0.15
GRD_MEAN, GRD_STD = (0.0953, 0.0264), (0.0427, 0.0215)  # VV, VH of Kuro Siwo (arXiv 2311.12056), after the clamp


def clamped(values: NDArray[Any], limit: float = CLAMP, missing: float | None = None) -> NDArray[np.float32]:
    """Values in [0, limit]; NaN becomes `missing`, or the limit (arXiv 2311.12056's code), as a bright target does."""
    nan = limit if missing is None else missing
    found: NDArray[np.float32] = np.nan_to_num(values.astype(np.float32), nan=nan, posinf=limit, neginf=0.0).clip(0, limit)
    return found


def chosen(values: NDArray[Any], names: Sequence[Channel]) -> NDArray[Any]:
    """Channels (..., len(names), height, width) of one or several dates (..., 2, height, width), VV first.

    ratio: VH / (VV + 1e-7). Raises TilthError for other than two channels.
    """
    if values.shape[-3] != 2:
        raise TilthError(f"'vv', 'vh' and 'ratio' are made from two channels, not {values.shape[-3]}")
    vv, vh = values[..., 0, :, :], values[..., 1, :, :]
    made = {"vv": lambda: vv, "vh": lambda: vh, "ratio": lambda: vh / (vv + 1e-7)}
    return np.stack([made[name]() for name in names], -3)


def slope(elevation: NDArray[Any], spacing: float = 10.0) -> NDArray[np.float32]:
    """Rise over run of an elevation model (..., height, width) whose pixels are `spacing` metres wide; central differences."""
    down, across = np.gradient(elevation.astype(np.float32), spacing, axis=(-2, -1))
    return np.hypot(down, across)  # type: ignore[no-any-return]
