"""What readers of scenes and of volumes share: large arrays become rows of tiles, one window in memory at a time.

Notable: how many bands the files have is looked at first, from their headers, because what learns from tiles needs one
number of them.
"""

from __future__ import annotations

import zipfile
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tilth.corpus import tiling
from tilth.corpus.arrays import NUMBERS, packed
from tilth.corpus.readers.base import PLACE, Reader, gather
from tilth.corpus.readers.media import label_of
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError

_MOST_LAST = 32  # bands that a last axis holds at most
_BROKEN = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)
Values = NDArray[Any]


class Broken(ValueError):
    """Nothing of a grid can be read."""


class Grid(Protocol):
    """A scene or volume that is read window by window."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its spatial axes."""

    @property
    def bands(self) -> list[str]:
        """Names."""

    @property
    def spacing(self) -> list[float] | None:
        """Of pixels along each axis; None when unknown."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Values of the reader's further columns."""

    def read(self, window: tiling.Window) -> tuple[Values, Values | None]:
        """(bands, *window) and where it holds no data (the same shape), None for nowhere. Raises OSError, ValueError or Broken."""


@dataclass
class ArrayGrid:
    """An array (bands, *shape) that is sliced: in memory, mapped from a file, or a proxy of one. NaN is no data."""

    array: Any
    bands: list[str] = field(default_factory=list)
    spacing: list[float] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shape = tuple(self.array.shape[1:])
        self.bands = self.bands or numbered(self.array.shape[0])

    def read(self, window: tiling.Window) -> tuple[Values, Values | None]:
        values = np.asarray(self.array[(slice(None), *window)])
        return values, np.isnan(values) if values.dtype.kind in "fc" else None


class Tiled(Reader):
    """Grids found at a path, cut into tiles. Subclasses say what the grids are and name their axes.

    Where files differ in their number of bands, those with the most frequent number are read (of two as frequent the greater)
    and the others are listed, unless `bands` says which number is wanted. A tile without any data is listed and left out.
    """

    axes: ClassVar[tuple[str, ...]]
    about: ClassVar[tuple[tuple[str, pa.DataType], ...]]

    def __init__(self, path: str | Path, size: int | Sequence[int], overlap: int | Sequence[int], bands: int | None) -> None:
        super().__init__(path)
        self.size, self.overlap, self.wanted = size, overlap, bands
        self.asked = bands is not None
        try:
            next(tiling.windows([1] * len(self.axes), size, overlap))
        except TilthError as error:
            raise TilthError(error.what, where=str(path), hint=error.hint) from None

    @abstractmethod
    def grids(self, skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
        """(file, part of it or '', grid) of all that can be opened, in a fixed order; a grid is usable until the next is asked for."""

    def schema(self) -> pa.Schema:
        columns = [("array", pa.binary()), ("source", pa.string()), *((axis, pa.int64()) for axis in self.axes)]
        columns += [("bands", pa.list_(pa.string())), ("spacing", pa.list_(pa.float64())), ("nodata", pa.float32())]
        return pa.schema([(PLACE, pa.string()), *columns, ("label", pa.string()), *self.about])

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        return gather(self._rows(skip), self.schema())

    def _rows(self, skip: SkipList) -> Iterator[dict[str, Any]]:
        if self.wanted is None and not self.path.is_file():
            self.wanted = most_frequent(len(grid.bands) for *_, grid in self.grids(SkipList()))
        for file, part, grid in self.grids(skip):
            count = len(grid.bands)
            if self.wanted not in (None, count):
                hint = "" if self.asked else f"; to read these instead, give the reader bands={count}"
                skip(file + part, f"it has {count} band{'s' * (count > 1)}, and those with {self.wanted} are read{hint}")
            else:
                yield from self._tiles(file, part, grid, skip)

    def _tiles(self, file: str, part: str, grid: Grid, skip: SkipList) -> Iterator[dict[str, Any]]:
        known = {"source": file + part, "bands": grid.bands, "spacing": grid.spacing, "label": label_of(file), **grid.about}
        for window in tiling.windows(grid.shape, self.size, self.overlap):
            offsets = [axis.start for axis in window]
            place = f"{file}{part}@{','.join(map(str, offsets))}"
            try:
                values, missing = grid.read(window)
            except Broken as error:
                skip(file + part, f"cannot be read: {error}")
                return
            except (OSError, ValueError) as error:
                skip(place, f"cannot be read: {error}")
                continue
            share = 0.0 if missing is None else float(missing.mean())
            if share == 1.0:
                skip(place, "nothing but no-data")
                continue
            yield {PLACE: place, "array": packed(values), **known, **dict(zip(self.axes, offsets)), "nodata": share}


def most_frequent(numbers: Iterable[int]) -> int | None:
    """Of two as frequent the greater; None without any."""
    counts = Counter(numbers)
    return max(counts, key=lambda number: (counts[number], number)) if counts else None


def numbered(count: int) -> list[str]:
    return [f"B{number}" for number in range(1, count + 1)]


def bands_first(array: Any) -> Any:
    """(bands, *rest) of (bands, *rest) or (*rest, bands): the last axis holds bands when it is the shortest and at most 32."""
    last = array.shape[-1]
    return np.moveaxis(array, -1, 0) if last <= _MOST_LAST and last < min(array.shape[:-1]) else array


def stored_arrays(path: Path, name: str, skip: SkipList, limit: int = 1 << 30) -> Iterator[tuple[str, Values]]:
    """(part, array) of a .npy, mapped, or of each array of a .npz, which is read whole and so may have `limit` bytes at most.

    part: '' or '#name'. Listed: what is not an array of numbers, pickled objects, and what is not whole.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN as error:
        pickled = "pickle" in str(error) or "Python objects" in str(error)
        skip(name, "no array of numbers, or one of objects, which is never unpickled" if pickled else f"cannot be read: {error}")
        return
    if isinstance(loaded, np.ndarray):
        if _usable(loaded, name, skip):
            yield "", loaded
        return
    with loaded:
        for member in loaded.zip.infolist():
            key = member.filename.removesuffix(".npy")
            place = f"{name}#{key}"
            if member.file_size > limit:
                skip(place, f"{member.file_size} bytes, more than is read whole ({limit}): as .npy it is read in windows")
                continue
            try:
                array = loaded[key]
            except _BROKEN as error:
                skip(place, f"cannot be read: {error}")
                continue
            if _usable(array, place, skip):
                yield f"#{key}", array


def _usable(array: Any, name: str, skip: SkipList) -> bool:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in NUMBERS:
        skip(name, "not an array of numbers")
    elif not array.size:
        skip(name, f"an empty array of shape {array.shape}")
    else:
        return True
    return False
