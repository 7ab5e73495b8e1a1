"""Pictures side by side as one PNG: what a report shows of reconstructions, neighbours and attention."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 64  # pixels a picture is shown at, at least
_GAP = 4


def sheet(rows: Sequence[Sequence[NDArray[np.floating]]]) -> str:
    """A PNG in base64 with a row of pictures for each row; pictures: (channels, *size) with values in [0, 1], cut where they leave it.

    Of one channel: grey; of three: colour; of others the first three (or the first of two). Of volumes the middle plane is shown.
    """
    made = [[_shown(picture) for picture in row] for row in rows]
    width, height = max(len(row) for row in made), len(made)
    tall = max(picture.shape[0] for row in made for picture in row)
    wide = max(picture.shape[1] for row in made for picture in row)
    page = np.full((height * (tall + _GAP) - _GAP, width * (wide + _GAP) - _GAP, 4), 0, np.uint8)
    for y, row in enumerate(made):
        for x, picture in enumerate(row):
            top, left = y * (tall + _GAP), x * (wide + _GAP)
            page[top : top + picture.shape[0], left : left + picture.shape[1], :3] = picture
            page[top : top + picture.shape[0], left : left + picture.shape[1], 3] = 255
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _shown(picture: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(height, width, 3), enlarged by whole numbers so that pixels stay pixels."""
    while picture.ndim > 3:
        picture = picture[:, picture.shape[1] // 2]
    if picture.ndim == 2:
        picture = picture[:, None, :]
    colours = picture[:3] if len(picture) >= 3 else picture[:1].repeat(3, 0)
    bytes_ = (np.nan_to_num(colours).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    times = max(1, _SIDE // max(bytes_.shape[:2]))
    return bytes_.repeat(times, 0).repeat(times, 1)
