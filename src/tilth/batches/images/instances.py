"""Rows with an array and the ids of the objects in it, for networks that tell objects of one kind apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilth.batches.images.tiles import TileRows, Tiles
from tilth.contracts import Batch, Noise, Sample
from tilth.corpus.arrays import unpacked
from tilth.errors import TilthError
from tilth.registry import Positive, method

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

UNLABELLED = -1


@method("batches", "instances", systems=[47])
class Instances:
    """Rows with `array` (.npy, (channels, *size)) and `mask` (.npy, whole numbers (*size); null: nothing is labelled).

    A voxel of the mask is above 0 in an object, whose id it is, 0 in none, and -1 where that is not known. Pixels are those of
    `tiles`, arrays as they are, which must be of one size. mean, std: of each channel, in natural scale (bytes: 1.0 is white),
    by which a fresh network standardises; None: measured.
    """

    def __init__(self, *, mean: list[float] | None = None, std: list[Positive] | None = None) -> None:
        if (mean is None) != (std is None):
            raise TilthError("'mean' and 'std' go together", where="batches.instances")
        self.mean, self.std = mean, std

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> InstanceRows:
        """Raises TilthError for a missing column, and for masks of another size than their array, of fractions, or below -1."""
        if "mask" not in corpus.columns:
            raise TilthError("the corpus has no column 'mask'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}.")
        tiles = Tiles().build(corpus, tokenizer, context)
        sample, shape = tiles.sample, (len(tiles), *tiles.sample.size)
        if self.mean is not None and self.std is not None:
            if not len(self.mean) == len(self.std) == sample.channels:
                raise TilthError(
                    f"'mean' and 'std' must have one number for each of {sample.channels} channels", where="batches.instances"
                )
            sample = Sample(sample.channels, sample.size, tuple(self.mean), tuple(self.std))
        parts = {"data": corpus.fingerprint, "kept": "instances"}
        folder = context.cache("ids", parts, lambda folder: _decode(corpus, shape, folder))
        ids = np.load(folder / "ids.npy", mmap_mode="r")
        return InstanceRows(tiles.pixels, sample, corpus_rows=tiles.corpus_rows, ids=ids)


@dataclass(frozen=True, kw_only=True)
class InstanceRows(TileRows):
    """ids: int32 (examples, *size), above 0 in objects, 0 in none, -1 unlabelled.

    batch: pixel_values (batch, channels, *size), ids int64 (batch, *size), keys (batch,).
    """

    ids: NDArray[np.int32]

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        """As above."""
        plain = super().batch(indices, noise)
        ids = torch.from_numpy(self.ids[indices]).long()
        return Batch(tokens=plain.tokens, samples=plain.samples, **plain, ids=ids)


def _decode(corpus: Corpus, shape: tuple[int, ...], folder: Path) -> None:
    """Write ids.npy, int32 `shape` (rows, *size)."""
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.int32, shape)
    number = 0
    for batch in corpus.scan(["id", "mask"], batch_size=64):
        for row in batch.to_pylist():
            where = f"{corpus.uri}, row '{row['id']}'"
            try:
                given = np.array(UNLABELLED) if row["mask"] is None else unpacked(row["mask"])
            except ValueError as error:
                raise TilthError(f"the mask cannot be read: {error}", where=where) from error
            if row["mask"] is not None and (given.shape != shape[1:] or given.dtype.kind not in "biu"):
                raise TilthError(f"a mask of {given.dtype} {given.shape} for an array of {shape[1:]}", where=where)
            if given.min() < UNLABELLED or given.max() > np.iinfo(np.int32).max:
                raise TilthError(
                    f"the mask has ids from {given.min()} to {given.max()}", where=where, hint="From -1 to 2^31 - 1."
                )
            ids[number] = given
            number += 1
    ids.flush()
