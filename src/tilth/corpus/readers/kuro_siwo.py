"""Kuro Siwo as it is published (arXiv 2311.12056): radar of three dates, a mask of floods and terrain for each cell of a grid.

Notable: a cell without water and an unlabelled one both lack the file of a mask, and the area in the names of their files tells
them apart; an unlabelled cell gets a mask of ignored pixels, because none would say that it is dry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from tilth.corpus import walk
from tilth.corpus.arrays import packed
from tilth.corpus.readers.base import PLACE, Reader, gather
from tilth.corpus.readers.scenes import TIFF_SUFFIXES, RasterGrid, Scenes
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError
from tilth.registry import method

DATES = {"pre2": "SL2", "pre1": "SL1", "post": "MS1"}  # in the order of the array
RADAR = tuple(f"{scene}_{channel}" for scene in DATES.values() for channel in ("IVV", "IVH"))
MASK, VALID, TERRAIN = "MK0_MLU", "MK0_MNA", "MK0_DEM"
IGNORED = 3  # in a mask
CATALOGUE = "catalogue.yaml"
# As the code of the paper names them (catalogue/catalogue.py): what it is, event, area (NA outside of all), date.
_PART = re.compile(r"((?:MS1|SL[12])_IV[VH]|MK0_(?:MLU|MNA|DEM|SLOPE))_(\d+)_(\d+|NA)_(\d{8})\.tif")
_NO_AREA = {"NA", "00", "999999"}
_BESIDE = (".xml", ".gpkg", ".gkpg", "info.json")  # ends of names that belong to the data and are not read
Part = tuple[Path, int, str, str]  # file, event, area, date


@method("reader", "kuro_siwo", systems=[6])
class KuroSiwo(Reader):
    """A row for each folder with files MS1_IVV_EVENT_AREA_DATE.tif and their like, at or below a path (the GRD product).

    array: .npy, float32 (6, height, width), sigma0 as it is stored (linear, not clamped, 0 where nothing was seen): VV and VH of
    SL2 (pre2, the first date before the event), of SL1 (pre1, the last before it) and of MS1 (post, after it); `bands` names these
    and `dates` are their days. mask: .npy, uint8 (height, width): 0 no water, 1 permanent water, 2 flood, 3 ignored; null where an
    area has no file of it: no water at all. Of an unlabelled cell (of no area, no file) it is 3 everywhere, so that a loss leaves
    it out; scalings that measure pixels that count (min_max, log) find none there. labelled: false of these. valid: .npy, uint8,
    1 where pixels count; null: all. dem: .npy, float32, metres, NaN for no data; null: none. event: number of the activation;
    area: as in the files' names, null for none; climate: where the file catalogue.yaml of the paper's code lies at the top of the
    folder, for the data do not tell; id: the cell, which is the folder's name; source: the folder.

    labelled: true: only such cells are read, false: only the others, None: both. A folder where a date, a channel or a readable
    file is missing, or whose files differ in size, event or area, is listed.
    """

    gives = "scene"
    unique_places = True

    def __init__(self, path: str | Path, /, *, labelled: bool | None = None) -> None:
        super().__init__(path)
        self.labelled = labelled

    def schema(self) -> pa.Schema:
        """The columns above."""
        columns = [(PLACE, pa.string()), ("id", pa.string())]
        columns += [(name, pa.large_binary()) for name in ("array", "mask", "valid", "dem")]
        columns += [("labelled", pa.bool_()), ("event", pa.int64()), ("area", pa.string()), ("climate", pa.string())]
        columns += [("dates", pa.list_(pa.string())), ("bands", pa.list_(pa.string())), ("source", pa.string())]
        return pa.schema(columns)

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        """Cells in the order of their folders' names; one is in memory beside the rows of a batch.

        Raises TilthError where all cells are of the kind that is not wanted.
        """
        return gather(self._rows(skip), self.schema())

    def _rows(self, skip: SkipList) -> Iterator[dict[str, Any]]:
        climates = _climates(self.path / CATALOGUE, skip)
        unwanted = wanted = 0
        for folder, files in groupby(walk.files(self.path, skip), lambda file: file[1].rpartition("/")[0]):
            place = folder or "."
            parts = _parts(place, files, skip)
            if not parts:
                continue
            _, event, named, _ = next(iter(parts.values()))
            area = None if named in _NO_AREA else named
            labelled = area is not None or MASK in parts
            if self.labelled not in (None, labelled):
                unwanted += 1
                continue
            wanted += 1
            if (arrays := _arrays(place, parts, skip)) is None:
                continue
            shape = arrays[RADAR[0]].shape
            mask = arrays.get(MASK) if labelled else np.full(shape, IGNORED, np.uint8)
            others = {"mask": mask, "valid": arrays.get(VALID), "dem": arrays.get(TERRAIN)}
            days = [parts[f"{scene}_IVV"][3] for scene in DATES.values()]
            yield {
                PLACE: place,
                "id": (folder or self.path.resolve().name).rpartition("/")[2],
                "array": packed(np.stack([arrays[part] for part in RADAR])),
                **{name: None if array is None else packed(array) for name, array in others.items()},
                "labelled": labelled,
                "event": event,
                "area": area,
                "climate": climates.get((event, area)),
                "dates": [f"{day[:4]}-{day[4:6]}-{day[6:]}" for day in days],
                "bands": [f"{date} {channel}" for date in DATES for channel in ("VV", "VH")],
                "source": place,
            }
        if unwanted and not wanted:
            other = "unlabelled" if self.labelled else "labelled"
            raise TilthError(
                f"all {unwanted} records are {other}", where=str(self.path), hint="Leave out the reader's setting 'labelled'."
            )


def of_kuro_siwo(names: Iterable[str]) -> bool:
    """Whether most TIFF files of these names are called as those of Kuro Siwo are."""
    tiffs = [name.rpartition("/")[2] for name in names if Path(name).suffix.lower() in TIFF_SUFFIXES]
    return 2 * sum(_PART.fullmatch(name) is not None for name in tiffs) > len(tiffs)


def _parts(place: str, files: Iterable[tuple[Path, str]], skip: SkipList) -> dict[str, Part]:
    """What a folder holds of a record, by kind; empty, with the reason listed, where that is not one whole record."""
    parts: dict[str, Part] = {}
    twice = set()
    for path, name in files:
        if match := _PART.fullmatch(path.name):
            kind, event, area, date = match.groups()
            twice |= {kind} & parts.keys()
            parts[kind] = path, int(event), area, date
        elif not name.endswith(_BESIDE) and name != CATALOGUE:
            skip(name, "not a file of Kuro Siwo's GRD product by its name")
    if not parts:
        return {}
    of = {part[1:3] for part in parts.values()}
    if missing := [part for part in RADAR if part not in parts]:
        skip(place, f"no {', '.join(missing)}")
    elif twice:
        skip(place, f"several files {', '.join(sorted(twice))}")
    elif len(of) > 1:
        skip(place, "files of several events or areas: " + ", ".join(f"{event} {area}" for event, area in sorted(of)))
    else:
        return parts
    return {}


def _arrays(place: str, parts: Mapping[str, Part], skip: SkipList) -> dict[str, NDArray[Any]] | None:
    """(height, width) of every kind but slope; None, with the reason listed, where one cannot be read or is of another size."""
    arrays: dict[str, NDArray[Any]] = {}
    for kind in (*RADAR, MASK, VALID, TERRAIN):
        if kind in parts:
            path = parts[kind][0]
            try:
                array = _read(path, kind)
                if arrays and array.shape != (first := arrays[RADAR[0]].shape):
                    raise ValueError(f"{_shown(array.shape)} pixels where {RADAR[0]} has {_shown(first)}")
            except (OSError, ValueError) as error:
                skip(f"{place}/{path.name}", str(error))
                return None
            arrays[kind] = array
    return arrays


def _read(path: Path, kind: str) -> NDArray[Any]:
    """Values of the one band of a file. Raises ValueError or OSError for what is not that."""
    listed = SkipList()
    found: NDArray[Any] | None = None
    for *_, grid in Scenes(path).grids(listed):
        if not isinstance(grid, RasterGrid) or len(grid.bands) != 1:
            raise ValueError(f"{len(grid.bands)} bands where one is wanted")
        if kind == TERRAIN:
            values, missing = grid.read(tuple(slice(0, side) for side in grid.shape))
            values, missing = values[0], None if missing is None else missing[0]
        else:  # what the file calls no data is a value here: 3 of a mask, 0 of radar
            values, missing = grid.dataset.read(1), None
        wanted = np.dtype(np.uint8 if kind in (MASK, VALID) else np.float32)
        if not np.can_cast(values.dtype, wanted, "safe" if wanted == np.uint8 else "same_kind"):
            raise ValueError(f"values of {values.dtype} where {wanted} is wanted")
        found = values == 1 if kind == VALID else values
        found = found.astype(wanted)
        if missing is not None:
            found[missing] = np.nan
    if found is None:
        raise ValueError(listed.items[0].reason)
    return found


def _climates(path: Path, skip: SkipList) -> dict[tuple[int, str | None], str]:
    """(event, area) -> name of its climate zone, of the paper's catalogue; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Untagged)
        zones = {zone["cl_zone"]: str(zone["cl_name"]) for zone in tree["CL_ZONES"]}
        areas = [(int(flood["act_id"]), area) for flood in tree["Floods"] for area in flood["aois"]]
        return {(event, area["aoi_id"]): zones[area["cl_zone"]] for event, area in areas}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        skip(path.name, f"tells no climate: {type(error).__name__} {error}")
        return {}


class _Untagged(yaml.SafeLoader):
    """YAML whose own tags, with which that catalogue joins paths, mean nothing."""


_Untagged.add_multi_constructor("!", lambda loader, suffix, node: None)


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
