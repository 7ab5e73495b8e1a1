"""Generated scans: ellipsoid organs in noise, told apart by their texture, with the organ of every voxel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tilth.context import Context
from tilth.contracts import Stage, method
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.registry import NonNegative, PositiveInt

ORGANS = 4  # smooth, grainy, striped, blotched


@method("stage", "ellipsoids", systems=[12])
class Ellipsoids(Stage):
    """Volumes with one ellipsoid of each of four tissues: smooth, grainy, striped and blotched ones, over smooth background.

    count: volumes; size: voxels along each axis; noise: standard deviation of what is added to every voxel, where tissues vary by
    about 0.25 about their mean. Each organ's mean brightness is drawn anew in every volume from one range, so brightness alone
    does not tell which it is. Later organs lie over earlier ones.

    Columns: id, number (from 0), array (.npy, uint8 (1, size, size, size)) and mask (.npy, uint8 (size, size, size), 0 background).
    """

    gives = "corpus"
    seeded = False

    def __init__(self, *, count: PositiveInt = 2000, size: PositiveInt = 24, noise: NonNegative = 0.1) -> None:
        self.count, self.size, self.noise = count, size, noise

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        schema = pa.schema(
            [("id", pa.string()), ("number", pa.int64()), ("array", pa.large_binary()), ("mask", pa.large_binary())]
        )
        corpus = Corpus.write(context.folder / "corpus.lance", self._batches(schema), schema)
        return {"rows": float(corpus.count())}

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.count, 256):
            numbers = range(start, min(start + 256, self.count))
            made = [scan(number, self.size, self.noise) for number in numbers]
            rows = [
                {"id": f"scan-{number:06d}", "number": number, "array": packed(values[None]), "mask": packed(mask)}
                for number, (values, mask) in zip(numbers, made, strict=True)
            ]
            yield pa.RecordBatch.from_pylist(rows, schema)


def scan(number: int, size: int, noise: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Values and organs (0 background, 1 to 4) of volume `number`, (size, size, size) each."""
    rng = np.random.default_rng([29, number])
    shape = (size,) * 3
    places = np.stack(np.meshgrid(*[np.arange(size) + 0.5] * 3, indexing="ij"))
    values = 0.5 + 0.25 * _rough(rng, shape, 3.0)
    mask = np.zeros(shape, np.uint8)
    textures = [
        lambda: np.zeros(shape),
        lambda: rng.normal(size=shape),
        lambda: _stripes(rng, places),
        lambda: _rough(rng, shape, 1.0),
    ]
    for organ in 1 + rng.permutation(ORGANS):
        centre, radii = rng.uniform(0.2, 0.8, 3) * size, rng.uniform(0.16, 0.34, 3) * size
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        local = np.tensordot(turn, places - centre[:, None, None, None], 1) / radii[:, None, None, None]
        inside = (local**2).sum(0) < 1
        values = np.where(inside, rng.uniform(0.35, 0.65) + 0.2 * textures[organ - 1](), values)
        mask[inside] = organ
    values = values + noise * rng.normal(size=shape)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8), mask


def _rough(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> NDArray[np.float64]:
    """Gaussian noise smoothed over `sigma` voxels, of variance 1."""
    field = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return field / field.std()  # type: ignore[no-any-return]


def _stripes(rng: np.random.Generator, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """A plane wave of four voxels' length in any direction, of variance 1."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    wave: NDArray[np.float64] = np.tensordot(direction, places, 1) * (2 * np.pi / 4) + rng.uniform(0, 2 * np.pi)
    return np.sqrt(2) * np.sin(wave)
