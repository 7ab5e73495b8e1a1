"""Arrays of numbers (scenes of many bands, volumes) as training pixels: decoded once into a memory-mapped array.

Notable: what is missing becomes its channel's mean; with `clip`, values become bytes between mean -+ clip deviations, which is how
multispectral pictures of 12 to 16 bits are brought to 8; the corpus is read in a stream, twice: once to count and measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilth.batches.images.pictures import PixelRows
from tilth.corpus.arrays import unpacked
from tilth.corpus.tiling import windows
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, Positive, PositiveInt, method

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

Values = NDArray[Any]


@method("batches", "tiles", systems=[12, 29])
class Tiles:
    """Rows with `array` (the bytes of a .npy, (channels, *size)) as pixels: bytes where they are bytes, else float32.

    size: sides of what is kept, one number for all axes: of each array the middle, or with `overlap` all of it, in tiles that overlap
    by so many pixels (the last of an axis is moved back); None: arrays as they are, which must be of one size. clip: values beyond
    mean -+ clip * std of their channel are set to that, and the rest scaled to bytes between (SatMAE, arXiv 2207.08051, has 2);
    None: values stay in their own scale. mean, std: of each channel for that, None: those of the rows; give them where several
    sets must be scaled alike. NaN, infinite values and those that a row's `nodata_value` names become the channel's mean.
    """

    def __init__(
        self,
        *,
        size: PositiveInt | list[PositiveInt] | None = None,
        overlap: NonNegativeInt | None = None,
        clip: Positive | None = None,
        mean: list[float] | None = None,
        std: list[Positive] | None = None,
    ) -> None:
        if (mean is None) != (std is None):
            raise TilthError("'mean' and 'std' go together", where="batches.tiles")
        if overlap is not None and size is None:
            raise TilthError("'overlap' is of tiles, which need a 'size'", where="batches.tiles.overlap")
        self.size, self.overlap, self.clip, self.mean, self.std = size, overlap, clip, mean, std

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> TileRows:
        if "array" not in corpus.columns:
            raise TilthError("the corpus has no column 'array'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}.")
        parts = {"data": corpus.fingerprint, **vars(self), "kept": "tiles"}
        folder = context.cache("pixels", parts, lambda folder: self._decode(corpus, folder))
        kept = PixelRows.open(folder / "pixels.npy")
        return TileRows(kept.pixels, kept.sample, corpus_rows=np.load(folder / "rows.npy"))

    def _decode(self, corpus: Corpus, folder: Path) -> None:
        """Write pixels.npy (tiles, channels, *size), and rows.npy, the row that each tile comes from."""
        survey = self._survey(corpus)
        low = high = None
        if self.clip is not None:
            low, high = survey.mean - self.clip * survey.std, survey.mean + self.clip * survey.std
        kind = np.uint8 if self.clip is not None or survey.kind == np.uint8 else np.float32
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", kind, (len(survey.rows), *survey.shape))
        wide = (-1, *[1] * (pixels.ndim - 2))
        for number, (_, _, values) in enumerate(self._tiles(corpus)):
            filled = np.where(np.isfinite(values), values, survey.mean.reshape(wide))
            if low is not None and high is not None:
                filled = ((filled - low.reshape(wide)) / (high - low).reshape(wide)).clip(0, 1) * 255
            pixels[number] = np.rint(filled) if kind == np.uint8 else filled
        pixels.flush()
        np.save(folder / "rows.npy", survey.rows)

    def _survey(self, corpus: Corpus) -> Survey:
        """What there is: one number of channels and one size, or a TilthError that names the first row of another."""
        rows: list[int] = []
        shape: tuple[int, ...] = ()
        kind, sums = np.dtype(np.float32), Sums(np.zeros(0), np.zeros(0), np.zeros(0))
        for row, name, values in self._tiles(corpus):
            if not rows:
                shape, kind = values.shape, values.dtype
                sums = Sums(*np.zeros((3, shape[0])))
            if values.shape != shape:
                shown = ["x".join(map(str, sides)) for sides in (values.shape, shape)]
                hint = "Set 'size', or read those of one number of bands with the reader's setting 'bands'."
                raise TilthError(
                    f"a tile of {shown[0]} among tiles of {shown[1]}", where=f"{corpus.uri}, row '{name}'", hint=hint
                )
            rows.append(row)
            if self.mean is None:
                sums.add(values.reshape(len(values), -1))
        if not rows:
            raise TilthError("the corpus has no rows", where=corpus.uri, hint="Check its predicate ('where').")
        mean, std = sums.mean, np.maximum(sums.squares / np.maximum(sums.count, 1), 1e-12) ** 0.5
        if self.mean is not None and self.std is not None:
            mean, std = np.array(self.mean), np.array(self.std)
            if not len(mean) == len(std) == shape[0]:
                raise TilthError(f"'mean' and 'std' must have one number for each of {shape[0]} channels", where="batches.tiles")
        return Survey(np.array(rows), shape, kind, mean, std)

    def _tiles(self, corpus: Corpus) -> Iterator[tuple[int, str, Values]]:
        """(number of the row, its id, values) of every tile: bytes as they are, else NaN where there is no data."""
        columns = ["id", "array", *(["nodata_value"] if "nodata_value" in corpus.columns else [])]
        row = 0
        for batch in corpus.scan(columns, batch_size=64):
            missing = batch["nodata_value"].to_pylist() if len(columns) > 2 else [None] * len(batch)
            for name, data, value in zip(batch["id"].to_pylist(), batch["array"].to_pylist(), missing, strict=True):
                where = f"{corpus.uri}, row '{name}'"
                array = _opened(data, where)
                for window in self._windows(array.shape[1:], where):
                    tile = array[(slice(None), *window)]
                    if value is not None:
                        tile = np.where(tile == value, np.nan, tile)
                    yield row, name, tile
                row += 1

    def _windows(self, shape: tuple[int, ...], where: str) -> Iterator[tuple[slice, ...]]:
        if self.size is None:
            return iter([tuple(slice(None) for _ in shape)])
        sides = [self.size] * len(shape) if isinstance(self.size, int) else self.size
        if len(sides) != len(shape) or any(side > extent for side, extent in zip(sides, shape, strict=True)):
            shown = ["x".join(map(str, numbers)) for numbers in (shape, sides)]
            raise TilthError(
                f"a tile of {shown[0]} has no part of {shown[1]}", where=where, hint="Set a smaller 'size', or none."
            )
        if self.overlap is not None:
            return windows(shape, sides, self.overlap)
        begins = [(extent - side) // 2 for side, extent in zip(sides, shape, strict=True)]
        return iter([tuple(slice(begin, begin + side) for begin, side in zip(begins, sides, strict=True))])


@dataclass(frozen=True, kw_only=True)
class TileRows(PixelRows):
    """Pixels of tiles, of which a row of the corpus may hold several. corpus_rows: int64 (tiles,), the row of each."""

    corpus_rows: NDArray[np.int64]

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return list(self.corpus_rows[np.asarray(indices)][:, None])


@dataclass(frozen=True)
class Survey:
    """rows: of the corpus, for each tile. shape: (channels, *size) and kind: type of numbers of the tiles. mean, std: of channels."""

    rows: NDArray[np.int64]
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass
class Sums:
    """Mean and summed squared deviation of each channel, gathered tile by tile without cancellation (Chan et al., 1979)."""

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    def add(self, values: Values) -> None:
        """values (channels, n); what is not finite is left out."""
        there = np.isfinite(values)
        known = there.sum(1)
        own = np.where(there, values, 0).sum(1, dtype=np.float64) / np.maximum(known, 1)
        spread = np.where(there, values - own[:, None], 0)
        total, apart = np.maximum(self.count + known, 1), own - self.mean
        self.squares += (spread**2).sum(1) + apart**2 * self.count * known / total
        self.mean += apart * known / total
        self.count += known


def _opened(data: bytes | None, where: str) -> Values:
    try:
        array = unpacked(data or b"")
    except ValueError as error:
        raise TilthError(f"the array cannot be read: {error}", where=where) from error
    if array.ndim < 2 or array.dtype.kind == "c":
        raise TilthError(f"an array of {array.dtype} with {array.ndim} axes is not channels of real numbers", where=where)
    return array
