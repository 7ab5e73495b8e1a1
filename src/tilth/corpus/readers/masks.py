"""Pictures and what each pixel of them is: two folders of files of the same names, as tiles of one size.

Notable: a mask is read as it is stored, palette numbers and all, for a conversion to colour would lose which class is meant.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from tilth.corpus import walk
from tilth.corpus.arrays import packed
from tilth.corpus.pictures import decoded
from tilth.corpus.readers.base import PLACE, Reader, gather
from tilth.corpus.skipped import SkipList
from tilth.corpus.tiling import windows
from tilth.registry import NonNegativeInt, PositiveInt, method

PICTURES, MASKS = "images", "masks"


@method("reader", "masks")
class Masks(Reader):
    """Tiles of every picture below images/ that has a mask of the same name (of any ending) below masks/.

    size, overlap: of the tiles in pixels, the last of an axis is moved back, a smaller picture is one smaller tile. channels: 3 or 1.
    Columns: array (.npy, uint8 (channels, size, size)), mask (.npy, whole numbers (size, size) as they are stored: grey values or
    numbers of a palette; single bits are 0 and 1), source, row and column (of the tile's first pixel), bands (names).
    Pictures without a mask, masks without a picture, masks in colour or of another size are listed.
    """

    gives = "scene"
    unique_places = True

    def __init__(
        self, path: str | Path, /, *, size: PositiveInt = 256, overlap: NonNegativeInt = 0, channels: Literal[1, 3] = 3
    ) -> None:
        super().__init__(path)
        windows((size, size), size, overlap)  # raises where tiles cannot overlap by so much
        self.size, self.overlap, self.channels = size, overlap, channels

    def schema(self) -> pa.Schema:
        """The columns above."""
        place = [("source", pa.string()), ("row", pa.int64()), ("column", pa.int64()), ("bands", pa.list_(pa.string()))]
        return pa.schema([(PLACE, pa.string()), ("array", pa.large_binary()), ("mask", pa.large_binary()), *place])

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        """Tiles in the order of the pictures' names, row by row of each; one picture and its mask are in memory."""
        return gather(self._rows(skip), self.schema())

    def _rows(self, skip: SkipList) -> Iterator[dict[str, Any]]:
        masks = {_stem(name): name for _, name in walk.files(self.path / MASKS, skip)}
        for path, name in walk.files(self.path / PICTURES, skip):
            place = f"{PICTURES}/{name}"
            if (other := masks.pop(_stem(name), None)) is None:
                skip(place, f"no mask of this name in {MASKS}/")
                continue
            drawn_place = f"{MASKS}/{other}"
            data, drawn = walk.read(path, place, skip), walk.read(self.path / MASKS / other, drawn_place, skip)
            if data is None or drawn is None:
                continue
            try:
                picture = decoded(data, self.channels)
            except ValueError as error:
                skip(place, str(error))
                continue
            try:
                mask = numbers(drawn)
            except ValueError as error:
                skip(drawn_place, str(error))
                continue
            if mask.shape != picture.shape[1:]:
                skip(drawn_place, f"{_shown(mask.shape)} pixels for a picture of {_shown(picture.shape[1:])}")
            else:
                yield from self._tiles(place, picture, mask)
        for name in masks.values():
            skip(f"{MASKS}/{name}", f"no picture of this name in {PICTURES}/")

    def _tiles(self, place: str, picture: NDArray[np.uint8], mask: NDArray[Any]) -> Iterator[dict[str, Any]]:
        for window in windows(mask.shape, self.size, self.overlap):
            row, column = (part.start for part in window)
            yield {
                PLACE: f"{place}@{row},{column}",
                "array": packed(picture[(slice(None), *window)]),
                "mask": packed(mask[window]),
                "source": place,
                "row": row,
                "column": column,
                "bands": ["red", "green", "blue"] if self.channels == 3 else ["grey"],
            }


def numbers(data: bytes) -> NDArray[Any]:
    """An encoded mask as whole numbers (height, width). Raises ValueError for what is in colour or cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            mode, found = image.mode, np.asarray(image)
    except Exception as error:  # decoders raise what they come upon
        raise ValueError(f"cannot be decoded: {error}") from None
    if found.ndim != 2 or found.dtype.kind not in "biu":
        raise ValueError(f"a mask of mode {mode}: the number of its class is wanted for each pixel, in one channel")
    return found.astype(np.uint8) if found.dtype == bool else found


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
