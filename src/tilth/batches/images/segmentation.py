"""Rows with an array of one or several dates and a mask of classes, for networks that name every pixel.

Notable: dates are channels of one array, so whatever crops or flips them does so alike; values stay in their natural scale and
the network standardises them; a pixel that counts for nothing is -100, which PyTorch's losses leave out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tilth.batches.images import sar
from tilth.batches.images.pictures import PixelRows
from tilth.batches.images.scaling import Scaling
from tilth.contracts import Batch, Configured, Kind, Noise, Sample, method, use
from tilth.corpus.arrays import unpacked
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, Positive, PositiveInt, plain

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

IGNORED = -100  # the class of pixels that are left out
KEPT_IGNORED, _STRANGE = 255, 254  # the same in the file, and a number that the mask must not have
_SCALED = 16  # rows that are scaled at once


@method("batches", "segmentation", systems=[6])
class Segmentation:
    """Rows with `array` (.npy, (dates * channels, *size)) and `mask` (.npy, whole numbers (*size); null: the first class everywhere).

    dates: how many dates the array holds, one after another; keep: numbers of those that are wanted, from 0, in this order (None:
    all). channels: of every date, made from VV and VH (`sar.chosen`, after the clamp); None: as they are. clamp: values go into
    [0, clamp] (0.15 for sigma0, arXiv 2311.12056); None: values stay. missing: what NaN becomes; None: the clamp, or without one
    its channel's mean (200 in the paper's code). terrain: one more channel after the dates, from the column `dem` (.npy (*size),
    metres) or its slope (rise over run, of pixels `spacing` metres wide; the paper's constants, 2.1277 and 67.5048, are of its
    code's width of 1), NaN becoming its mean. scaling: of the channels of dates. mean, std: of each channel of one date where
    they are standardised, then of the terrain where that is; None: measured. classes: the mask's numbers, in the order of the
    network's classes; ignore: those that count for nothing. valid: a column (.npy (*size); null: all) that is 0 where a pixel
    counts for nothing, whatever its class.
    """

    def __init__(
        self,
        *,
        dates: PositiveInt = 1,
        keep: list[NonNegativeInt] | None = None,
        channels: list[sar.Channel] | None = None,
        clamp: Positive | None = None,
        missing: float | None = None,
        terrain: Literal["dem", "slope"] | None = None,
        spacing: Positive = 10.0,
        scaling: Annotated[Configured, Kind("scaling")] = use("scaling", "standardise"),
        mean: list[float] | None = None,
        std: list[Positive] | None = None,
        classes: tuple[NonNegativeInt, ...] = (0, 1, 2),
        ignore: tuple[NonNegativeInt, ...] = (3,),
        valid: str | None = None,
    ) -> None:
        if (mean is None) != (std is None):
            raise TilthError("'mean' and 'std' go together", where="batches.segmentation")
        if missing is not None and clamp is not None and not 0 <= missing <= clamp:
            raise TilthError(f"NaN would become {missing}, outside the clamp", where="batches.segmentation.missing")
        if keep is not None and (not keep or max(keep) >= dates):
            raise TilthError(f"of {dates} dates, {keep} cannot be kept", where="batches.segmentation.keep", hint="Count from 0.")
        if set(classes) & set(ignore) or len(set(classes)) < len(classes) or max([*classes, *ignore]) > 255:
            raise TilthError("a number of the mask is one class or ignored, and below 256", where="batches.segmentation.classes")
        if len(classes) >= _STRANGE:
            raise TilthError(f"{len(classes)} classes", where="batches.segmentation.classes", hint=f"At most {_STRANGE - 1}.")
        self.dates, self.keep, self.channels, self.clamp, self.missing = dates, keep, channels, clamp, missing
        self.terrain, self.spacing, self.scaling, self.valid = terrain, spacing, scaling, valid
        self.mean, self.std, self.classes, self.ignore = mean, std, classes, ignore

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> SegmentationRows:
        """Decoded once. TilthError for missing columns, rows of several sizes, and numbers that are no class."""
        scaling: Scaling = self.scaling.build()
        columns = ["array", "mask", *(["dem"] if self.terrain else []), *([self.valid] if self.valid else [])]
        columns += [scaling.by] if scaling.by else []
        for column in columns:
            if column not in corpus.columns:
                raise TilthError(
                    f"the corpus has no column '{column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
                )
        parts = {"data": corpus.fingerprint, **plain(vars(self)), "kept": "segmentation"}
        folder = context.cache("pixels", parts, lambda folder: self._decode(corpus, ["id", *columns], scaling, folder))
        kept = PixelRows.open(folder / "pixels.npy")
        return SegmentationRows(kept, self._sample(kept.sample, scaling), np.load(folder / "masks.npy", mmap_mode="r"))

    def _sample(self, measured: Sample, scaling: Scaling) -> Sample:
        dates, aside = len(self.keep or range(self.dates)), int(self.terrain is not None)
        radar = measured.channels - aside
        each, more = radar // dates * scaling.standardised, aside * scaling.terrain  # numbers that `mean` and `std` have
        if self.mean is not None and self.std is not None and not len(self.mean) == len(self.std) == each + more:
            raise TilthError(
                f"'mean' and 'std' have {len(self.mean)} and {len(self.std)} numbers", where="batches.segmentation",
                hint=f"With this scaling, one for each of {each} channels of a date{', then one for the terrain' * more}.",
            )  # fmt: skip
        given = (self.mean, measured.mean, 0.0), (self.std, measured.std, 1.0)
        made = []
        for stated, found, neutral in given:
            dated = found[:radar] if stated is None else tuple(stated[:each]) * dates
            last = found[radar:] if stated is None else tuple(stated[each:])
            made.append(
                (
                    *(dated if scaling.standardised else (neutral,) * radar),
                    *(last if scaling.terrain else (neutral,) * aside),
                )
            )
        return Sample(measured.channels, measured.size, *made)

    def _decode(self, corpus: Corpus, columns: list[str], scaling: Scaling, folder: Path) -> None:
        """Write pixels.npy (rows, channels, *size) and masks.npy, uint8 (rows, *size): index of the class."""
        pixels = masks = None
        numbers: list[NDArray[Any]] = []  # what the scaling has measured in each row
        groups: list[Any] = []
        for number, (where, values, mask, known, group) in enumerate(self._rows(corpus, columns, scaling.by)):
            if pixels is None or masks is None:
                kind, count = np.uint8 if values.dtype == np.uint8 and not scaling.rewrites else np.float32, corpus.count()
                pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", kind, (count, *values.shape))
                masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, (count, *values.shape[1:]))
            if values.shape != pixels.shape[1:]:
                raise TilthError(f"an array of {values.shape} among arrays of {pixels.shape[1:]}", where=where)
            pixels[number], masks[number] = values, mask
            if scaling.rewrites:
                radar = len(values) - int(self.terrain is not None)
                counts = known.repeat(radar // len(known), 0) & (mask != KEPT_IGNORED)
                numbers.append(scaling.measured(np.where(counts, values[:radar], np.nan)))
                groups.append(group if scaling.by else number)
        if pixels is None or masks is None:
            raise TilthError("the corpus has no rows", where=corpus.uri, hint="Check its predicate ('where').")
        if (self.clamp is None or self.terrain) and pixels.dtype == np.float32:
            mean = np.array(PixelRows.open(folder / "pixels.npy").sample.mean).reshape(-1, *[1] * (pixels.ndim - 2))
            for start in range(0, len(pixels), 256):
                part = pixels[start : start + 256]
                np.copyto(part, np.broadcast_to(mean, part.shape), where=~np.isfinite(part), casting="same_kind")
        if scaling.rewrites:
            joined = np.unique(np.array(groups), return_inverse=True)[1]
            self._scale(pixels, scaling, scaling.agreed(np.stack(numbers), joined, self._limits(numbers[0])))
        pixels.flush()
        masks.flush()

    def _limits(self, numbers: NDArray[Any]) -> NDArray[np.float64]:
        """The largest value that each radar channel can have, NaN where there is none; a ratio's is taken to be 1."""
        names: Sequence[str | None] = self.channels or [None]
        each = [np.nan if self.clamp is None else 1.0 if name == "ratio" else self.clamp for name in names]
        return np.resize(each, len(numbers))

    def _scale(self, pixels: NDArray[Any], scaling: Scaling, numbers: NDArray[Any]) -> None:
        """Bring the radar channels of `pixels` to their scale, in place."""
        radar = numbers.shape[1]
        for start in range(0, len(pixels), _SCALED):
            part = slice(start, start + _SCALED)
            pixels[part, :radar] = scaling.scaled(pixels[part, :radar], numbers[part])

    def _rows(self, corpus: Corpus, columns: list[str], by: str | None) -> Iterator[Row]:
        table = np.full(256, _STRANGE, np.uint8)
        table[list(self.classes)], table[list(self.ignore)] = np.arange(len(self.classes)), KEPT_IGNORED
        for batch in corpus.scan(columns, batch_size=64):
            for row in batch.to_pylist():
                where = f"{corpus.uri}, row '{row['id']}'"
                try:
                    array = unpacked(row["array"] or b"")
                    values = self._values(array, unpacked(row["dem"] or b"") if self.terrain else None)
                    given = np.full(values.shape[1:], self.classes[0]) if row["mask"] is None else unpacked(row["mask"])
                    counts = unpacked(row[self.valid]) != 0 if self.valid and row[self.valid] is not None else np.array(True)
                except ValueError as error:
                    raise TilthError(f"the row cannot be read: {error}", where=where) from error
                if given.shape != values.shape[1:] or given.dtype.kind not in "biu":
                    raise TilthError(f"a mask of {given.dtype} {given.shape} for values of {values.shape[1:]}", where=where)
                if counts.shape not in ((), values.shape[1:]):
                    raise TilthError(f"'{self.valid}' of {counts.shape} for values of {values.shape[1:]}", where=where)
                mask = np.where((given >= 0) & (given <= 255), table[given.clip(0, 255)], _STRANGE).astype(np.uint8)
                if (mask == _STRANGE).any():
                    strange = np.unique(given[mask == _STRANGE])[:5].tolist()
                    raise TilthError(
                        f"the mask has {strange}", where=where, hint="Name every number in 'classes' or 'ignore' of the batches."
                    )
                mask[np.broadcast_to(~counts, mask.shape)] = KEPT_IGNORED
                if by and row[by] is None:
                    raise TilthError(f"the row has no '{by}', by which it is scaled", where=where)
                yield where, values, mask, np.isfinite(self._dated(array)).all(1), row[by] if by else None

    def _dated(self, array: NDArray[Any]) -> NDArray[Any]:
        """(dates, channels, *size) of the dates that are kept."""
        return array.reshape(self.dates, -1, *array.shape[1:])[self.keep or slice(None)]

    def _values(self, array: NDArray[Any], dem: NDArray[Any] | None) -> NDArray[Any]:
        if array.ndim < 2 or array.dtype.kind == "c" or len(array) % self.dates:
            raise ValueError(f"{array.dtype} {array.shape} is not {self.dates} dates of channels of real numbers")
        values = self._dated(array)
        values = sar.clamped(values, self.clamp, self.missing) if self.clamp is not None else values
        values = sar.chosen(values, self.channels) if self.channels else values
        if self.clamp is None and self.missing is not None and values.dtype.kind == "f":
            values = np.where(np.isfinite(values), values, self.missing)
        values = values.reshape(-1, *array.shape[1:])
        if dem is None:
            return values
        more = sar.slope(dem, self.spacing) if self.terrain == "slope" else dem
        return np.concatenate([values, more.reshape(1, *array.shape[1:])]).astype(np.float32)


# Where a row comes from, its values, indices of classes, which pixels of each date are numbers, and its group for the scaling.
Row = tuple[str, NDArray[Any], NDArray[np.uint8], NDArray[np.bool_], Any]


@dataclass(frozen=True)
class SegmentationRows:
    """pixels: as of `PixelRows`. masks: uint8 (examples, *size), index of the class, 255 for what counts for nothing.

    batch: pixel_values (batch, channels, *size), mask int64 (batch, *size) with -100 for that, keys (batch,).
    """

    pixels: PixelRows
    sample: Sample
    masks: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        """As above."""
        mask = torch.from_numpy(self.masks[indices]).long()
        mask.masked_fill_(mask == KEPT_IGNORED, IGNORED)
        plain = self.pixels.batch(indices, noise)
        return Batch(tokens=plain.tokens, samples=plain.samples, **plain, mask=mask)

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        """One row for each example."""
        return self.pixels.rows(indices)
