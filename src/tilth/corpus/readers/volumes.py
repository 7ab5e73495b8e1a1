"""Volumes, from NIfTI, folders of DICOM slices and NumPy files, as tiles of voxels: windows are read one at a time.

Notable: what cannot be sliced on disk (compressed NIfTI, slices of DICOM) is laid out once in a temporary file and mapped, so
memory does not grow with a volume; bringing volumes to one spacing is done window by window and has no seams.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tilth.corpus import walk
from tilth.corpus.readers.dicom import Slice, is_dicom, looked_at, series
from tilth.corpus.readers.tiled import ArrayGrid, Broken, Grid, Tiled, Values, bands_first, numbered, stored_arrays
from tilth.corpus.skipped import SkipList
from tilth.corpus.tiling import Window
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, Positive, PositiveInt, method

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


@method("reader", "volumes")
class Volumes(Tiled):
    """Tiles of every volume at or below a path: array, the bytes of a .npy (channels, depth, height, width).

    size, overlap: of the tiles in voxels, one number or three (depth, height, width); the last tile of an axis is moved back,
    a smaller volume is one smaller tile. spacing: millimetres per voxel that volumes are brought to, by linear interpolation
    (as scipy.ndimage.zoom with order=1, grid_mode=True, mode='nearest'; float32); None: each keeps its own.
    bands: the number of channels that is read where files differ (None: the most frequent, the others are listed).
    Columns: source, plane, row and column (of the tile's first voxel), bands (names), spacing (millimetres per voxel along
    depth, height and width, null when unknown), nodata (share of NaN), label (folder), modality, orientation (where depth,
    height and width lead: S superior, A anterior, R right and their opposites).
    NIfTI: turned to the closest RAS orientation, so depth, height and width lead S, A and R; a fourth axis is channels; own
    dtype, or float32 where the header scales. DICOM: the slices of one series in one folder, which is the source, ordered by
    position; float32 in units of the modality; padding and missing slices are NaN. An array is a volume (depth, height, width),
    (channels, depth, height, width) or, when the last axis is the shortest and at most 32, (depth, height, width, channels).
    """

    gives = "volume"
    axes = ("plane", "row", "column")
    about = (("modality", pa.string()), ("orientation", pa.string()))

    def __init__(
        self,
        path: str | Path,
        /,
        *,
        size: PositiveInt | list[PositiveInt] = 96,
        overlap: NonNegativeInt | list[NonNegativeInt] = 0,
        spacing: Positive | list[Positive] | None = None,
        bands: PositiveInt | None = None,
    ) -> None:
        super().__init__(path, size, overlap, bands)
        self.spacing = [float(s) for s in spacing] if isinstance(spacing, list) else [spacing] * 3 if spacing else None
        if self.spacing and len(self.spacing) != 3:
            raise TilthError(f"a spacing of {self.spacing} is not one number or three", where=str(path))

    def grids(self, skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
        for file, part, grid in self._found(skip):
            if self.spacing is None:
                yield file, part, grid
            elif grid.spacing is None:
                skip(file + part, f"its spacing is unknown, so it cannot be brought to {self.spacing} mm")
            else:
                yield file, part, Resampled(grid, grid.spacing, self.spacing)

    def _found(self, skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
        waiting: dict[str, list[Slice]] = {}
        for path, name in walk.files(self.path, skip):
            folder = name.rpartition("/")[0]
            for left in [f for f in waiting if f and f != folder and not folder.startswith(f + "/")]:
                yield from self._of_slices(left, waiting.pop(left), skip)
            if name.lower().endswith((".nii", ".nii.gz")):
                if grid := _of_nifti(path, name, skip):
                    yield name, "", grid
            elif path.suffix.lower() in (".npy", ".npz"):
                yield from _of_arrays(path, name, skip)
            elif is_dicom(path):
                if found := looked_at(path, name, skip):
                    waiting.setdefault(folder, []).append(found)
            else:
                skip(name, "neither NIfTI, DICOM nor NumPy by its name and first bytes")
        for folder, slices in waiting.items():
            yield from self._of_slices(folder, slices, skip)

    def _of_slices(self, folder: str, slices: list[Slice], skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
        file = slices[0].name if self.path.is_file() else folder or "."
        found = list(series(file, slices, skip))
        for stack in found:
            yield file, f"#{stack.uid}" if len(found) > 1 else "", stack


def _of_arrays(path: Path, name: str, skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
    for part, array in stored_arrays(path, name, skip):
        if array.ndim in (3, 4):
            yield name, part, ArrayGrid(array[None] if array.ndim == 3 else bands_first(array), about=_nothing_known())
        else:
            skip(name + part, f"an array of {array.ndim} axes is no volume")


def _nothing_known() -> dict[str, Any]:
    return {"modality": None, "orientation": None}


def _of_nifti(path: Path, name: str, skip: SkipList) -> Grid | None:
    try:
        import nibabel
    except ImportError:
        raise TilthError("NIfTI is read by the package `nibabel`", where=name, hint="pip install 'tilth[scenes]'") from None
    try:
        if not path.stat().st_size:
            raise OSError("an empty file")
        image: Any = nibabel.load(path)
        grid = NiftiGrid(path, image)
    except Exception as error:  # nibabel's own, of gzip, zlib and the system
        skip(name, str(error) if str(error) == "an empty file" else f"cannot be read: {error}")
        return None
    return grid


class NiftiGrid:
    """A NIfTI volume seen along its closest RAS axes as (channels, superior, anterior, right), sliced where it lies."""

    def __init__(self, path: Path, image: Any) -> None:
        from nibabel.affines import voxel_sizes
        from nibabel.orientations import io_orientation

        self.path, self.proxy = path, image.dataobj
        stored = tuple(image.shape)
        self.stored = stored + (1,) * (4 - len(stored))  # (x, y, z, channels)
        if len(stored) == 5 and stored[3] == 1:  # NIfTI keeps the fourth axis for time
            self.stored = stored[:3] + stored[4:]
        if len(stored) < 2 or len(self.stored) > 4 or self.proxy.dtype.kind not in "biufc" or not all(stored):
            raise ValueError(f"voxels of {self.proxy.dtype} in an array of {stored} are no volume with channels")
        turns = io_orientation(image.affine)
        known = bool(np.isfinite(turns).all())
        # For each axis that is given out (superior, anterior, right): the stored axis it lies on, and whether it runs backwards.
        self.lies = [int(np.flatnonzero(turns[:, 0] == axis)[0]) if known else axis for axis in (2, 1, 0)]
        self.backwards = [bool(known and turns[axis, 1] < 0) for axis in self.lies]
        self.shape = tuple(self.stored[axis] for axis in self.lies)
        self.bands = numbered(self.stored[3])
        unit = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
        sizes = voxel_sizes(image.affine) * unit
        self.spacing = [float(sizes[axis]) for axis in self.lies] if known else None
        self.about = {"modality": None, "orientation": "SAR" if known else None}

    @cached_property
    def voxels(self) -> np.memmap:
        """(x, y, z, channels) as stored, mapped; what is compressed is unpacked to a temporary file, and so checked, first."""
        source: Any = self.path
        try:
            if self.path.suffix.lower() == ".gz":
                source = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its map
                with gzip.open(self.path) as packed:
                    shutil.copyfileobj(packed, source, 1 << 20)
                source.flush()
            return np.memmap(source, self.proxy.dtype, "r", self.proxy.offset, self.stored, "F")
        except (OSError, EOFError, ValueError, zlib.error) as error:  # the last but one: the map is longer than the file
            raise Broken(str(error)) from None

    def read(self, window: Window) -> tuple[Values, Values | None]:
        cut: list[slice] = [slice(None)] * 4
        for axis, back, part in zip(self.lies, self.backwards, window):
            n = self.stored[axis]
            cut[axis] = slice(n - part.stop, n - part.start) if back else part
        values = np.asarray(self.voxels[tuple(cut)]).transpose(3, *self.lies)
        values = np.flip(values, tuple(1 + place for place, back in enumerate(self.backwards) if back))
        if (self.proxy.slope, self.proxy.inter) != (1, 0):
            values = (values * self.proxy.slope + self.proxy.inter).astype(np.float32)
        return values, np.isnan(values) if values.dtype.kind in "fc" else None


class Resampled:
    """A grid brought to another spacing by linear interpolation; voxels are boxes, so the field of view is kept."""

    def __init__(self, grid: Grid, spacing: list[float], wanted: list[float]) -> None:
        self.grid, self.bands, self.about = grid, grid.bands, grid.about
        self.shape = tuple(max(1, round(n * own / to)) for n, own, to in zip(grid.shape, spacing, wanted))
        self.spacing: list[float] | None = [n * own / new for n, own, new in zip(grid.shape, spacing, self.shape)]

    def read(self, window: Window) -> tuple[Values, Values | None]:
        if self.shape == self.grid.shape:
            return self.grid.read(window)
        block: list[slice] = []
        mixes: list[tuple[Values, Values, Values]] = []
        for part, n, new in zip(window, self.grid.shape, self.shape):
            at = np.clip((np.arange(part.start, part.stop) + 0.5) * n / new - 0.5, 0, n - 1)
            low, share = np.floor(at).astype(np.int64), at - np.floor(at)
            high = np.where(share > 0, low + 1, low)  # not a neighbour of weight 0, which may be NaN
            block.append(slice(int(low[0]), int(high.max()) + 1))
            mixes.append((low - low[0], high - low[0], share))
        values = self.grid.read(tuple(block))[0].astype(np.float64)
        for axis, (low, high, share) in enumerate(mixes, start=1):
            share = share.reshape([-1 if a == axis else 1 for a in range(4)])
            below = values.take(low, axis)
            values = below + (values.take(high, axis) - below) * share
        result = values.astype(np.float32)
        return result, np.isnan(result)
