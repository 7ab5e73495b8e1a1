"""Pictures without labels: decoded once into a memory-mapped array, drawn as slices of it, augmented where the model is.

Notable: pixels stay bytes until they are on the device; with them goes each example's key, from which views and masks are
drawn there (`batches.draws`), so that they depend on the seed and the position in the run alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilth.batches.text.labelled import class_indices
from tilth.contracts import Batch, Noise, Sample
from tilth.corpus.pictures import decoded
from tilth.errors import TilthError
from tilth.registry import PositiveInt, method

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

_LOOKED_AT = 2000  # pictures from which mean and deviation of the channels are taken


@method("batches", "pictures")
class Pictures:
    """Rows with `image` (encoded bytes) as pixels in [0, 1] (bytes until they are on the device).

    size: height and width that pictures are kept at (shorter side resized, then the middle cut out); None: that of the first one.
    Views are cut from these, so keep larger ones than the model will see where pictures are large. channels: 1 grey, 3 colour.
    label: the class's column, None: labels are not read; classes: in the order of their numbers, None: those of the rows, sorted.
    """

    def __init__(
        self,
        *,
        size: PositiveInt | None = None,
        channels: Literal[1, 3] = 3,
        label: str | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.size, self.channels, self.label, self.classes = size, channels, label, classes

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> PixelRows:
        if "image" not in corpus.columns:
            raise TilthError("the corpus has no column 'image'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}.")
        parts = {"data": corpus.fingerprint, "size": self.size, "channels": self.channels, "kept": "pictures"}
        folder = context.cache("pixels", parts, lambda folder: self._decode(corpus, folder))
        rows = PixelRows.open(folder / "pixels.npy")
        if self.label is None:
            return rows
        table = corpus.table(["id", self.label])
        labels, _ = class_indices(table.column(self.label).to_pylist(), self.classes, table.column("id").to_pylist())
        return replace(rows, labels=labels)

    def _decode(self, corpus: Corpus, folder: Path) -> None:
        """Write pixels.npy, uint8 (pictures, channels, height, width)."""
        pixels: np.memmap | None = None
        size = (self.size, self.size) if self.size else None
        done = 0
        for batch in corpus.scan(["id", "image"], batch_size=256):
            for name, data in zip(batch["id"].to_pylist(), batch["image"].to_pylist(), strict=True):
                try:
                    picture = decoded(data or b"", self.channels, size)
                except ValueError as error:
                    raise TilthError(f"the picture cannot be read: {error}", where=f"{corpus.uri}, row '{name}'") from error
                if pixels is None:
                    size = picture.shape[1], picture.shape[2]
                    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (corpus.count(), *picture.shape))
                pixels[done] = picture
                done += 1
        if pixels is None:
            raise TilthError("the corpus has no rows", where=corpus.uri, hint="Check its predicate ('where').")
        pixels.flush()


@dataclass(frozen=True)
class PixelRows:
    """pixels: uint8 (examples, channels, *size), 255 meaning 1.0, or float32 in the values' own scale.

    batch: pixel_values (batch, channels, *size) as they are kept, keys int64 (batch,), labels (batch,) where they are read; an
    example counts as one token.
    """

    pixels: NDArray[Any]
    sample: Sample
    labels: NDArray[np.int64] | None = None

    @classmethod
    def open(cls, path: Path) -> PixelRows:
        """The array in a .npy file, memory-mapped; channel statistics are those of evenly spaced examples."""
        pixels = np.load(path, mmap_mode="r")
        shown = pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), _LOOKED_AT)).astype(np.int64)]
        axes = (0, *range(2, shown.ndim))
        unit = 255.0 if shown.dtype == np.uint8 else 1.0
        mean, std = np.nanmean(shown, axes, dtype=np.float64) / unit, np.nanstd(shown, axes, dtype=np.float64) / unit
        each = [tuple(np.atleast_1d(values).tolist()) for values in (mean, np.maximum(std, 1e-6))]
        sample = Sample(pixels.shape[1], tuple(pixels.shape[2:]), *each)
        return cls(pixels, sample)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        values = torch.from_numpy(self.pixels[indices])
        given = {"pixel_values": values, "keys": torch.from_numpy(noise.keys())}
        if self.labels is not None:
            given["labels"] = torch.from_numpy(self.labels[indices])
        return Batch(tokens=len(values), samples=len(values), **given)

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return [np.array([index]) for index in np.asarray(indices).tolist()]


def natural(pixel_values: Tensor) -> Tensor:
    """Pixels as floats: bytes in [0, 1], others as they are."""
    return pixel_values.float().div_(255) if pixel_values.dtype == torch.uint8 else pixel_values.float()
