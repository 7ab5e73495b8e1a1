"""Cutting a patch out of one image and pasting it into another, a whole set at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def inside(corner: NDArray[np.int64], size: int, height: int, width: int) -> NDArray[np.int64]:
    """Top left corners (n, 2) moved as little as needed for patches of `size` to lie in the image."""
    return np.clip(corner, 0, np.array([height - size, width - size]))


def crop(images: np.ndarray, corner: NDArray[np.int64], size: int) -> np.ndarray:
    """The patch at each image's corner: images (n, c, h, w), corner (n, 2) -> (n, c, size, size)."""
    rows, columns, channels = _places(images, corner, size)
    return images[np.arange(len(images))[:, None, None, None], channels, rows, columns]


def paste(images: np.ndarray, patches: np.ndarray, corner: NDArray[np.int64]) -> np.ndarray:
    """Copies of the images with each its patch (n, c, size, size) at its corner; what would stick out is moved inside."""
    out = images.copy()
    rows, columns, channels = _places(images, corner, patches.shape[-1])
    out[np.arange(len(images))[:, None, None, None], channels, rows, columns] = patches
    return out


def _places(images: np.ndarray, corner: NDArray[np.int64], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and channel numbers of each image's patch, to be broadcast together."""
    start, span = inside(corner, size, *images.shape[2:]), np.arange(size)
    rows = (start[:, :1] + span)[:, None, :, None]
    columns = (start[:, 1:] + span)[:, None, None, :]
    return rows, columns, np.arange(images.shape[1])[None, :, None, None]
