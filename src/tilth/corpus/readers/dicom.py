"""DICOM slices as volumes: one series is one volume, its slices ordered by where they lie.

Notable: headers are read alone to order and check; pixels are decoded slice by slice into a temporary file that is mapped.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilth.corpus.readers.tiled import Values
from tilth.corpus.skipped import SkipList
from tilth.corpus.tiling import Window
from tilth.errors import TilthError

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_TAGS = [
    "SeriesInstanceUID", "Modality", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "ImagePositionPatient", "PixelSpacing",
    "ImageOrientationPatient", "SliceThickness", "ImagerPixelSpacing", *_PIXELS,
]  # fmt: skip
_EVEN = 0.1  # share of the distance between slices that one may be off its place


@dataclass(frozen=True)
class Slice:
    """Header of one slice. position, along: mm, LPS; None when the file does not say."""

    path: Path
    name: str
    uid: str
    shape: tuple[int, int]
    position: tuple[float, ...] | None
    along: tuple[float, ...] | None
    pixel: tuple[float, ...] | None
    thickness: float | None
    modality: str | None


def is_dicom(path: Path) -> bool:
    """By its ending or its mark."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def looked_at(path: Path, name: str, skip: SkipList) -> Slice | None:
    """The header of a file; None, with the reason listed, for what is not one slice of one channel."""
    try:
        import pydicom
    except ImportError:
        raise TilthError("DICOM is read by the package `pydicom`", where=name, hint="pip install 'tilth[scenes]'") from None
    try:
        if not path.stat().st_size:
            skip(name, "an empty file")
            return None
        header = pydicom.dcmread(path, defer_size=1024, specific_tags=_TAGS)
        reason = ""
        if not any(keyword in header for keyword in _PIXELS):
            reason = "no pixel data" + (f" (modality {header.Modality})" if "Modality" in header else "")
        elif int(header.get("NumberOfFrames") or 1) > 1:
            reason = f"{header.NumberOfFrames} frames in one file, which is not read: convert it to NIfTI"
        elif int(header.get("SamplesPerPixel") or 1) > 1:
            reason = "a slice in colour"
        if reason:
            skip(name, reason)
            return None
        thickness = header.get("SliceThickness")
        return Slice(
            path, name, str(header.get("SeriesInstanceUID", "")), (int(header.Rows), int(header.Columns)),
            _numbers(header, "ImagePositionPatient", 3), _numbers(header, "ImageOrientationPatient", 6),
            _numbers(header, "PixelSpacing", 2) or _numbers(header, "ImagerPixelSpacing", 2),
            float(thickness) if thickness else None, header.get("Modality"),
        )  # fmt: skip
    except Exception as error:  # a damaged header makes the parser raise what it comes upon
        skip(name, f"not DICOM that can be read: {str(error) or type(error).__name__}")
        return None


def series(place: str, slices: list[Slice], skip: SkipList) -> Iterator[Stack]:
    """The volumes among the slices of one folder, by series in order of first appearance.

    Listed: slices whose size, orientation or pixels differ from most of their series, without a position, at a place that is
    taken; planes that are missing; series whose planes are mostly missing or are not evenly spaced.
    """
    groups: dict[str, list[Slice]] = {}
    for found in slices:
        groups.setdefault(found.uid, []).append(found)
    for uid, group in groups.items():
        stack = _stack(place if len(groups) == 1 else f"{place}#{uid}", uid, group, skip)
        if stack is not None:
            yield stack


def _stack(place: str, uid: str, group: list[Slice], skip: SkipList) -> Stack | None:
    if len(group) == 1:
        return Stack(uid, [(0, group[0])], 1, group[0].thickness, skip)
    placed = [s for s in group if s.position and s.along]
    for lost in [s for s in group if not (s.position and s.along)]:
        skip(lost.name, "no position or orientation: its place in the volume is unknown")
    if not placed:
        return None
    for what, of in (("size", _size), ("pixel spacing", _pixel), ("orientation", _direction)):
        counts = Counter(map(of, placed))
        usual = counts.most_common(1)[0][0]
        for odd in [s for s in placed if of(s) != usual]:
            skip(odd.name, f"its {what} {of(odd)} differs from the {usual} of most of its series")
        placed = [s for s in placed if of(s) == usual]
    normal = np.cross(placed[0].along[:3], placed[0].along[3:])  # type: ignore[index]
    heights = np.array([np.dot(s.position, normal) for s in placed])  # type: ignore[arg-type]
    order = np.argsort(heights, kind="stable")
    kept: list[tuple[float, Slice]] = []
    for height, found in ((float(heights[i]), placed[i]) for i in order):
        if kept and height - kept[-1][0] < 1e-3:
            skip(found.name, f"lies where {kept[-1][1].name} lies")
        else:
            kept.append((height, found))
    if len(kept) == 1:
        return Stack(uid, [(0, kept[0][1])], 1, kept[0][1].thickness, skip)
    gaps = np.diff([height for height, _ in kept])
    step = float(np.median(gaps))
    steps = np.rint(gaps / step)
    if steps.min() < 1 or np.abs(gaps / step - steps).max() > _EVEN:
        skip(place, f"its {len(kept)} slices are not evenly spaced")
        return None
    planes = [0, *np.cumsum(steps).astype(int).tolist()]
    count = planes[-1] + 1
    if count > 2 * len(kept):
        skip(place, f"{count - len(kept)} of {count} planes are missing")
        return None
    for plane in sorted(set(range(count)) - set(planes)):
        skip(place, f"the slice at plane {plane} is missing: filled with NaN", kept=True)
    return Stack(uid, [(plane, found) for plane, (_, found) in zip(planes, kept)], count, step, skip)


class Stack:
    """A series as a grid of one channel, float32 in units of the modality (CT: Hounsfield); missing voxels are NaN."""

    def __init__(self, uid: str, slices: list[tuple[int, Slice]], planes: int, step: float | None, skip: SkipList) -> None:
        self.uid, self.slices, self.skip = uid, slices, skip
        first = slices[0][1]
        self.shape = (planes, *first.shape)
        self.bands = ["B1"]
        self.spacing: list[float] | None = [step, *first.pixel] if step and first.pixel else None
        self.about = {"modality": first.modality, "orientation": _leads(first.along)}

    @cached_property
    def voxels(self) -> NDArray[np.float32]:
        """(planes, rows, columns); slices that cannot be decoded are listed and NaN."""
        import pydicom
        from pydicom.pixels import apply_modality_lut

        result = np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=self.shape)  # noqa: SIM115 - lives as long as its map
        result.fill(np.nan)
        for plane, found in self.slices:
            try:
                whole = pydicom.dcmread(found.path)
                stored = whole.pixel_array
                values = np.asarray(apply_modality_lut(stored, whole), np.float32)
                if "PixelPaddingValue" in whole:
                    values = np.where(stored == whole.PixelPaddingValue, np.float32(np.nan), values)
                result[plane] = values
            except Exception as error:  # decoders raise what they come upon
                self.skip(found.name, f"its pixels cannot be decoded: {error}")
        return result

    def read(self, window: Window) -> tuple[Values, Values | None]:
        values = self.voxels[(None, *window)]
        return values, np.isnan(values)


def _size(found: Slice) -> Any:
    return found.shape


def _pixel(found: Slice) -> Any:
    return found.pixel


def _direction(found: Slice) -> Any:
    return tuple(round(value, 3) + 0.0 for value in found.along or ())


def _leads(along: tuple[float, ...] | None) -> str | None:
    """Where planes, rows and columns lead: the nearest of L, P, S and their opposites."""
    if along is None:
        return None
    axes = (np.cross(along[:3], along[3:]), np.array(along[3:]), np.array(along[:3]))
    return "".join("RAI"[i] if axis[i] < 0 else "LPS"[i] for axis in axes for i in [int(np.abs(axis).argmax())])


def _numbers(header: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    value = header.get(keyword)
    return tuple(map(float, value)) if value is not None and len(value) == count else None
