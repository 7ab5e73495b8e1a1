"""Scenes of many bands, from GeoTIFF and NumPy files, as tiles: windows are read one at a time.

Notable: no-data is NaN in tiles of floats; tiles of whole numbers keep the value that means it, and the column `nodata_value`
says which. What the file's own layout asks for is held in a cache of bounded size, so memory does not grow with a scene.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tilth.corpus import walk
from tilth.corpus.readers.tiled import ArrayGrid, Grid, Tiled, Values, bands_first, numbered, stored_arrays
from tilth.corpus.skipped import SkipList
from tilth.corpus.tiling import Window
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt, method

if TYPE_CHECKING:
    from rasterio import DatasetReader

TIFF_SUFFIXES = {".tif", ".tiff"}
ARRAY_SUFFIXES = {".npy", ".npz"}
_CACHE = 128 * 2**20  # bytes that GDAL keeps of a file whose blocks are wider than a tile


@method("reader", "scenes")
class Scenes(Tiled):
    """Tiles of every scene at or below a path: array, the bytes of a .npy (bands, height, width) in the source's own dtype.

    size, overlap: of the tiles in pixels; the last tile of an axis is moved back, a smaller scene is one smaller tile.
    bands: the number of bands that is read where files differ (None: the most frequent, the others are listed).
    Columns: source, row and column (of the tile's first pixel), bands (names), spacing (metres per pixel along height and
    width, null when unknown), nodata (share of the tile's values that are NaN or no-data), nodata_value, label (folder), crs.
    GeoTIFF of the first page. An array is a scene (height, width), (bands, height, width) or, when the last axis is the
    shortest and at most 32, (height, width, bands); one of four axes is a stack of scenes along the first.
    """

    gives = "scene"
    axes = ("row", "column")
    about = (("nodata_value", pa.float64()), ("crs", pa.string()))

    def __init__(
        self, path: str | Path, /, *, size: PositiveInt = 256, overlap: NonNegativeInt = 0, bands: PositiveInt | None = None
    ) -> None:
        super().__init__(path, size, overlap, bands)

    def grids(self, skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
        for path, name in walk.files(self.path, skip):
            suffix = path.suffix.lower()
            if suffix in ARRAY_SUFFIXES:
                yield from _of_arrays(path, name, skip)
            elif suffix in TIFF_SUFFIXES or self.path.is_file():
                yield from _of_tiff(path, name, skip)
            else:
                skip(name, "not a scene by its name")


def _of_arrays(path: Path, name: str, skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
    for part, array in stored_arrays(path, name, skip):
        if array.ndim == 4:
            for number, scene in enumerate(array):
                yield name, f"{part}#{number}", ArrayGrid(bands_first(scene))
        elif array.ndim in (2, 3):
            yield name, part, ArrayGrid(array[None] if array.ndim == 2 else bands_first(array))
        else:
            skip(name + part, f"an array of {array.ndim} axes is no scene")


def _of_tiff(path: Path, name: str, skip: SkipList) -> Iterator[tuple[str, str, Grid]]:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError:
        raise TilthError("GeoTIFF is read by the package `rasterio`", where=name, hint="pip install 'tilth[scenes]'") from None
    try:
        if not path.stat().st_size:
            skip(name, "an empty file")
            return
        # Only as GeoTIFF: other formats of GDAL may name files and addresses elsewhere, which it would follow.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path, driver="GTiff")
    except (RasterioError, OSError) as error:
        skip(name, f"cannot be read: {error}")
        return
    with dataset:
        if len(dataset.subdatasets) > 1:
            skip(name, f"{len(dataset.subdatasets)} pages: the first is used", kept=True)
        yield name, "", RasterGrid(dataset)


class RasterGrid:
    """An open GeoTIFF."""

    def __init__(self, dataset: DatasetReader) -> None:
        self.dataset, self.shape = dataset, (dataset.height, dataset.width)
        self.bands = [given or own for given, own in zip(dataset.descriptions, numbered(dataset.count))]
        self.spacing = metres(dataset)
        self.masked = any(flags[0].name != "all_valid" for flags in dataset.mask_flag_enums)
        whole = all(np.dtype(kind).kind in "iub" for kind in dataset.dtypes if kind != "complex_int16")
        value = dataset.nodata if whole else None
        self.about = {"nodata_value": value, "crs": dataset.crs.to_string() if dataset.crs else None}

    def read(self, window: Window) -> tuple[Values, Values | None]:
        import rasterio
        from rasterio.windows import Window as Part

        part = Part.from_slices(*window)
        with rasterio.Env(GDAL_CACHEMAX=_CACHE):  # around each read, because it is in force only inside
            values = self.dataset.read(window=part)
            missing = self.dataset.read_masks(window=part) == 0 if self.masked else None
        if values.dtype.kind in "fc":
            if missing is not None:
                values[missing] = np.nan
            missing = np.isnan(values)
        return values, missing


def metres(dataset: DatasetReader) -> list[float] | None:
    """Metres per pixel along height and width; degrees are taken at the scene's centre (WGS 84). None without a reference."""
    if not dataset.crs:
        return None
    move = dataset.transform
    if dataset.crs.is_geographic:
        latitude = math.radians((move @ (dataset.width / 2, dataset.height / 2))[1])
        along = 111132.95 - 559.82 * math.cos(2 * latitude) + 1.175 * math.cos(4 * latitude)  # one degree of latitude
        across = 111412.84 * math.cos(latitude) - 93.5 * math.cos(3 * latitude)  # one degree of longitude
    else:
        along = across = dataset.crs.linear_units_factor[1]
    return [math.hypot(move.b * across, move.e * along), math.hypot(move.a * across, move.d * along)]


def is_scene(path: Path) -> bool:
    """Whether a TIFF is more than a picture: other samples than whole numbers of at most 8 bits, or more than grey or RGB.

    Alpha and CMYK are pictures. False, too, for what is not TIFF.
    """
    try:
        with path.open("rb") as file:
            header = file.read(8)
            if header[2:4] in (b"+\0", b"\0+"):  # BigTIFF
                header += file.read(8)
            tags: Any = ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
    except Exception:  # the parser of a damaged directory raises what it comes upon
        return False
    bits, kinds, cmyk = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(262) == 5
    alpha = sum(extra in (1, 2) for extra in tags.get(338, ()))
    return max(bits) > 8 or set(kinds) != {1} or tags.get(277, 1) - alpha > (4 if cmyk else 3)
