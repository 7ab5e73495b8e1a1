"""Images with classes, for classifiers: decoded once, then slices of one memory-mapped array.

Notable: pixels are kept as bytes under the content of the corpus and the size asked for, so runs, seeds and stages share
them; a batch is an array slice that becomes normalised floats; who must not read labels is given none.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tilth.batches.text.labelled import class_indices
from tilth.contracts import Batch, Noise, Sample
from tilth.errors import TilthError
from tilth.registry import Positive, PositiveInt, method

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

NO_LABEL = -100  # stands where labels are not read
_LOOKED_AT = 2000  # images from which mean and deviation of the channels are taken


@method("batches", "images")
class Images:
    """Rows with `image` (encoded bytes) and `label` as inputs of a classifier: (pixels / 255 - mean) / std.

    size: height and width that images are brought to (bilinear), None: that of the first. channels: 1 grey, 3 colour.
    label: the class's column, None: labels are not read. Whole numbers are the classes' indices as they stand; names are
    numbered as in `classes`, or sorted, which is right only where every part of the data holds every class.
    """

    def __init__(
        self,
        *,
        size: PositiveInt | None = None,
        channels: Literal[1, 3] = 3,
        mean: float = 0.5,
        std: Positive = 0.5,
        label: str | None = "label",
        classes: list[str] | None = None,
    ) -> None:
        self.size, self.channels, self.mean, self.std, self.label, self.classes = size, channels, mean, std, label, classes

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> ImageRows:
        for column in ("image", *([self.label] if self.label else [])):
            if column not in corpus.columns:
                raise TilthError(
                    f"the corpus has no column '{column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
                )
        parts = {"data": corpus.fingerprint, "size": self.size, "channels": self.channels}
        folder = context.cache("pixels", parts, lambda folder: self._decode(corpus, folder))
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        return ImageRows(pixels, self._labels(corpus, len(pixels)), self.mean, self.std)

    def _decode(self, corpus: Corpus, folder: Path) -> None:
        """Write pixels.npy, uint8 (images, channels, height, width)."""
        pixels: np.memmap | None = None
        done, mode = 0, "L" if self.channels == 1 else "RGB"
        for batch in corpus.scan(["id", "image"], batch_size=256):
            for name, data in zip(batch["id"].to_pylist(), batch["image"].to_pylist(), strict=True):
                try:
                    image = Image.open(io.BytesIO(data or b"")).convert(mode)
                except (UnidentifiedImageError, OSError) as error:
                    raise TilthError(f"the image cannot be read: {error}", where=f"{corpus.uri}, row '{name}'") from error
                if pixels is None:
                    height, width = (self.size, self.size) if self.size else (image.height, image.width)
                    shape = (corpus.count(), self.channels, height, width)
                    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)
                if (image.width, image.height) != pixels.shape[:1:-1]:
                    image = image.resize(pixels.shape[:1:-1], Image.Resampling.BILINEAR)
                pixels[done] = np.asarray(image).reshape(pixels.shape[2], pixels.shape[3], -1).transpose(2, 0, 1)
                done += 1
        if pixels is None:
            raise TilthError("the corpus has no rows", where=corpus.uri, hint="Check its predicate ('where').")
        pixels.flush()

    def _labels(self, corpus: Corpus, count: int) -> NDArray[np.int64]:
        if self.label is None:
            return np.full(count, NO_LABEL, dtype=np.int64)
        table = corpus.table(["id", self.label])
        given = table.column(self.label).to_pylist()
        if self.classes is None and all(isinstance(label, int) for label in given):
            return np.array(given, dtype=np.int64)
        return class_indices(given, self.classes, table.column("id").to_pylist())[0]


@dataclass(frozen=True)
class ImageRows:
    """pixels: uint8 (images, channels, height, width). labels: class index of each image.

    batch: pixel_values float32 (batch, channels, height, width), labels (batch); an image counts as one token.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    mean: float = 0.5
    std: float = 0.5

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def sample(self) -> Sample:
        """What the images look like to a backbone: statistics of the values as batches have them, from evenly spaced images."""
        shown = self.batch(np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).astype(np.int64)).pixel_values
        mean, std = shown.mean((0, 2, 3)), shown.std((0, 2, 3)).clamp(min=1e-6)
        return Sample(shown.shape[1], tuple(shown.shape[2:]), tuple(mean.tolist()), tuple(std.tolist()))

    def batch(self, indices: np.ndarray, noise: Noise | None = None) -> Batch:
        pixels = torch.from_numpy(self.pixels[indices]).float()
        values = pixels.div_(255).sub_(self.mean).div_(self.std)
        return Batch(tokens=len(values), samples=len(values), pixel_values=values, labels=torch.from_numpy(self.labels[indices]))

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return [np.array([index]) for index in np.asarray(indices).tolist()]
