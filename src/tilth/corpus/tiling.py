"""Large arrays as tiles of one size, and what was predicted for the tiles as one array again.

Notable: the last tile of an axis is moved back, so that every tile is whole and every pixel covered; predictions are joined
by a weighted mean, in which a Gaussian about the middle of each tile hides its edges (sliding-window inference of arXiv
2502.08347 and of nnU-Net, arXiv 1809.10486; standard deviation an eighth of the tile, as there).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilth.errors import TilthError

Window = tuple[slice, ...]


def starts(length: int, size: int, overlap: int = 0) -> list[int]:
    """Where tiles of `size` begin on an axis: `size - overlap` apart, the last moved back to end with the axis."""
    if not 0 <= overlap < size:
        raise TilthError(f"tiles of {size} cannot overlap by {overlap}", hint="The overlap is at least 0 and less than the tile.")
    return [*range(0, max(length - size, 0), size - overlap), max(length - size, 0)]


def windows(shape: Sequence[int], size: int | Sequence[int], overlap: int | Sequence[int] = 0) -> Iterator[Window]:
    """The tiles of an array of `shape`, first axis slowest; one number of `size` or `overlap` is that of every axis.

    All tiles are `size` and cover the array; an axis shorter than `size` has one tile, as long as it is.
    Raises TilthError when an overlap is not less than the size.
    """
    sizes, overlaps = _each(size, len(shape)), _each(overlap, len(shape))
    axes = [[slice(a, min(a + s, n)) for a in starts(n, s, o)] for n, s, o in zip(shape, sizes, overlaps, strict=True)]
    return iter(product(*axes))


def stitched(
    tiles: Iterable[tuple[Sequence[int], NDArray[Any]]],
    shape: Sequence[int],
    *,
    weights: Literal["gaussian", "uniform"] = "gaussian",
) -> NDArray[Any]:
    """Per-tile predictions as one array (channels ..., *shape), float32, or float64 or complex where the predictions are.

    tiles: (offsets, values) in any order; offsets: where the tile begins on each axis of `shape`; values: (channels ..., *tile).
    weights: of a pixel in the mean over the tiles that cover it. Pixels that no tile covers are NaN.
    Needs the result and one array of `shape` in memory. Raises TilthError without a tile, and for tiles that do not fit.
    """
    total: NDArray[Any] | None = None
    weight = np.zeros(tuple(shape), np.float32)
    axes = len(weight.shape)
    for offsets, tile in tiles:
        values = np.asarray(tile)
        extent = values.shape[values.ndim - axes :]
        if len(offsets) != axes or any(a < 0 or a + n > s for a, n, s in zip(offsets, extent, shape)):
            raise TilthError(f"a tile of {tuple(extent)} at {tuple(offsets)} does not lie in an array of {tuple(shape)}")
        if total is None:
            total = np.zeros((*values.shape[: values.ndim - axes], *shape), np.result_type(values.dtype, np.float32))
        window = tuple(slice(a, a + n) for a, n in zip(offsets, extent))
        everywhere: Any = (..., *window)
        share = _weights(tuple(extent), weights)
        total[everywhere] += share * values
        weight[window] += share
    if total is None:
        raise TilthError("there are no tiles to put together")
    with np.errstate(invalid="ignore"):  # 0 / 0 is what no tile covers
        total /= weight
    return total


@lru_cache(maxsize=8)
def _weights(extent: tuple[int, ...], kind: str) -> NDArray[np.float32]:
    """Weight of each pixel of a tile, the same for all channels: product over axes, greatest in the middle, nowhere 0."""
    result = np.ones(extent, np.float32)
    if kind == "gaussian":
        for axis, n in enumerate(extent):
            distance = (np.arange(n) - (n - 1) / 2) / (n / 8)
            result *= np.exp(-0.5 * distance**2).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(len(extent))])
    return result


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    values = [value] * axes if isinstance(value, int) else list(value)
    if len(values) != axes:
        raise TilthError(f"{values} does not give one number for each of {axes} axes")
    return values
