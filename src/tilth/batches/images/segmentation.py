"""Rows with an array of one or several dates and a mask of classes, for networks that name every pixel.

Notable: dates are channels of one array, so whatever crops or flips them does so alike; values stay in their natural scale and
the network standardises them; a pixel that counts for nothing is -100, which PyTorch's losses leave out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tilth.batches.images import sar
from tilth.batches.images.pictures import PixelRows
from tilth.contracts import Batch, Noise, Sample
from tilth.corpus.arrays import unpacked
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, Positive, PositiveInt, method

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

IGNORED = -100  # the class of pixels that are left out
_KEPT_IGNORED, _STRANGE = 255, 254  # the same in the file, and a number that the mask must not have


@method("batches", "segmentation", systems=[6])
class Segmentation:
    """Rows with `array` (.npy, (dates * channels, *size)) and `mask` (.npy, whole numbers (*size); null: the first class everywhere).

    dates: how many dates the array holds, one after another; keep: numbers of those that are wanted, from 0, in this order (None:
    all). channels: of every date, made from VV and VH (`sar.chosen`); None: as they are. clamp: values go into [0, clamp], NaN
    becomes clamp (0.15 for sigma0, arXiv 2311.12056); None: values stay, and NaN becomes its channel's mean (200 in the paper's
    code). terrain: one more channel after the dates, from the column `dem` (.npy (*size), metres) or its slope (rise over run, of
    pixels `spacing` metres wide). mean, std: of each channel of one date, then of the terrain; None: measured.
    classes: the mask's numbers, in the order of the network's classes; ignore: those that count for nothing.
    """

    def __init__(
        self,
        *,
        dates: PositiveInt = 1,
        keep: list[NonNegativeInt] | None = None,
        channels: list[sar.Channel] | None = None,
        clamp: Positive | None = None,
        terrain: Literal["dem", "slope"] | None = None,
        spacing: Positive = 10.0,
        mean: list[float] | None = None,
        std: list[Positive] | None = None,
        classes: tuple[NonNegativeInt, ...] = (0, 1, 2),
        ignore: tuple[NonNegativeInt, ...] = (3,),
    ) -> None:
        if (mean is None) != (std is None):
            raise TilthError("'mean' and 'std' go together", where="batches.segmentation")
        if keep is not None and (not keep or max(keep) >= dates):
            raise TilthError(f"of {dates} dates, {keep} cannot be kept", where="batches.segmentation.keep", hint="Count from 0.")
        if set(classes) & set(ignore) or len(set(classes)) < len(classes) or max([*classes, *ignore]) > 255:
            raise TilthError("a number of the mask is one class or ignored, and below 256", where="batches.segmentation.classes")
        if len(classes) >= _STRANGE:
            raise TilthError(f"{len(classes)} classes", where="batches.segmentation.classes", hint=f"At most {_STRANGE - 1}.")
        self.dates, self.keep, self.channels, self.clamp, self.terrain, self.spacing = (
            dates,
            keep,
            channels,
            clamp,
            terrain,
            spacing,
        )
        self.mean, self.std, self.classes, self.ignore = mean, std, classes, ignore

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> SegmentationRows:
        """Decoded once. TilthError for missing columns, rows of several sizes, and numbers that are no class."""
        columns = ["array", "mask", *(["dem"] if self.terrain else [])]
        for column in columns:
            if column not in corpus.columns:
                raise TilthError(
                    f"the corpus has no column '{column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
                )
        parts = {"data": corpus.fingerprint, **vars(self), "kept": "segmentation"}
        folder = context.cache("pixels", parts, lambda folder: self._decode(corpus, ["id", *columns], folder))
        kept = PixelRows.open(folder / "pixels.npy")
        return SegmentationRows(kept, self._sample(kept.sample), np.load(folder / "masks.npy", mmap_mode="r"))

    def _sample(self, measured: Sample) -> Sample:
        if self.mean is None or self.std is None:
            return measured
        dates, aside = len(self.keep or range(self.dates)), int(self.terrain is not None)
        if not len(self.mean) == len(self.std) == (measured.channels - aside) // dates + aside:
            raise TilthError(
                f"'mean' and 'std' have {len(self.mean)} and {len(self.std)} numbers", where="batches.segmentation",
                hint=f"One for each of {(measured.channels - aside) // dates} channels of a date{', then one for the terrain' * aside}.",
            )  # fmt: skip
        each = [(*values[: len(values) - aside] * dates, *values[len(values) - aside :]) for values in (self.mean, self.std)]
        return Sample(measured.channels, measured.size, *each)

    def _decode(self, corpus: Corpus, columns: list[str], folder: Path) -> None:
        """Write pixels.npy (rows, channels, *size) and masks.npy, uint8 (rows, *size): index of the class."""
        pixels = masks = None
        for number, (where, values, mask) in enumerate(self._rows(corpus, columns)):
            if pixels is None or masks is None:
                kind, count = np.uint8 if values.dtype == np.uint8 else np.float32, corpus.count()
                pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", kind, (count, *values.shape))
                masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, (count, *values.shape[1:]))
            if values.shape != pixels.shape[1:]:
                raise TilthError(f"an array of {values.shape} among arrays of {pixels.shape[1:]}", where=where)
            pixels[number], masks[number] = values, mask
        if pixels is None or masks is None:
            raise TilthError("the corpus has no rows", where=corpus.uri, hint="Check its predicate ('where').")
        if self.clamp is None and pixels.dtype == np.float32:
            mean = np.array(PixelRows.open(folder / "pixels.npy").sample.mean).reshape(-1, *[1] * (pixels.ndim - 2))
            for start in range(0, len(pixels), 256):
                part = pixels[start : start + 256]
                np.copyto(part, np.broadcast_to(mean, part.shape), where=~np.isfinite(part), casting="same_kind")
        pixels.flush()
        masks.flush()

    def _rows(self, corpus: Corpus, columns: list[str]) -> Iterator[tuple[str, NDArray[Any], NDArray[np.uint8]]]:
        """(where it comes from, values, indices of classes) of every row."""
        table = np.full(256, _STRANGE, np.uint8)
        table[list(self.classes)], table[list(self.ignore)] = np.arange(len(self.classes)), _KEPT_IGNORED
        for batch in corpus.scan(columns, batch_size=64):
            for row in batch.to_pylist():
                where = f"{corpus.uri}, row '{row['id']}'"
                try:
                    values = self._values(unpacked(row["array"] or b""), unpacked(row["dem"] or b"") if self.terrain else None)
                    given = np.full(values.shape[1:], self.classes[0]) if row["mask"] is None else unpacked(row["mask"])
                except ValueError as error:
                    raise TilthError(f"the row cannot be read: {error}", where=where) from error
                if given.shape != values.shape[1:] or given.dtype.kind not in "biu":
                    raise TilthError(f"a mask of {given.dtype} {given.shape} for values of {values.shape[1:]}", where=where)
                mask = np.where((given >= 0) & (given <= 255), table[given.clip(0, 255)], _STRANGE).astype(np.uint8)
                if (mask == _STRANGE).any():
                    strange = np.unique(given[mask == _STRANGE])[:5].tolist()
                    raise TilthError(
                        f"the mask has {strange}", where=where, hint="Name every number in 'classes' or 'ignore' of the batches."
                    )
                yield where, values, mask

    def _values(self, array: NDArray[Any], dem: NDArray[Any] | None) -> NDArray[Any]:
        if array.ndim < 2 or array.dtype.kind == "c" or len(array) % self.dates:
            raise ValueError(f"{array.dtype} {array.shape} is not {self.dates} dates of channels of real numbers")
        values = array.reshape(self.dates, -1, *array.shape[1:])[self.keep or slice(None)]
        values = sar.clamped(values, self.clamp) if self.clamp is not None else values
        values = sar.chosen(values, self.channels) if self.channels else values
        values = values.reshape(-1, *array.shape[1:])
        if dem is None:
            return values
        more = sar.slope(dem, self.spacing) if self.terrain == "slope" else dem
        return np.concatenate([values, more.reshape(1, *array.shape[1:])]).astype(np.float32)


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
        mask.masked_fill_(mask == _KEPT_IGNORED, IGNORED)
        plain = self.pixels.batch(indices, noise)
        return Batch(tokens=plain.tokens, samples=plain.samples, **plain, mask=mask)

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        """One row for each example."""
        return self.pixels.rows(indices)
