"""Generated scans of bodies: five organs alike in all but their place, which is nearly the same in every body."""

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
from tilth.registry import NonNegative, NonNegativeInt, PositiveInt

# Centres of the organs, of the spine after them, as shares of the body's radii along x and y and of half its length along z.
_PLACES = np.array(
    [[-0.50, -0.20, 0.0], [0.45, -0.35, 0.2], [0.05, -0.55, -0.2], [-0.40, 0.45, 0.1], [0.45, 0.35, -0.1], [0.0, 0.72, 0.0]]
)
_RADII = np.array([[0.26, 0.26, 0.7]] * 5 + [[0.13, 0.13, 9.0]])
ORGANS = 5
_TRIES = 48  # places looked at for a crop


@method("stage", "bodies", systems=[9])
class Bodies(Stage):
    """Volumes (size, size, size / 3), each an elliptic trunk with a bright spine and five ellipsoid organs, in noise.

    Organs have one size, one texture and one range of brightness, drawn anew in every body; what tells them apart is where they
    lie. Trunk, centres, radii and brightness vary from body to body. noise: standard deviation of what is added to every voxel,
    where organs are about 0.3 brighter than what is around them. crop: None, or sides of the cube that is kept of each body, in
    which one organ has most voxels; organs take turns, and the place is otherwise random along x and y. start: number of the first
    body, so that corpora need not share any.

    Columns: id, number, array (.npy, uint8 (1, x, y, z)), spacing (1 mm along each axis), mask (.npy, uint8 (x, y, z), 0 background, 1 to 5) and
    organ (1 to 5), that with most voxels.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        count: PositiveInt = 2000,
        size: PositiveInt = 48,
        noise: NonNegative = 0.1,
        crop: PositiveInt | None = None,
        start: NonNegativeInt = 0,
    ) -> None:
        self.count, self.size, self.noise, self.crop, self.start = count, size, noise, crop, start

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        schema = pa.schema(
            [
                ("id", pa.string()), ("number", pa.int64()), ("array", pa.large_binary()), ("spacing", pa.list_(pa.float64())),
                ("mask", pa.large_binary()), ("organ", pa.int64()),
            ]
        )  # fmt: skip
        corpus = Corpus.write(context.folder / "corpus.lance", self._batches(schema), schema, metadata={"kind": "volume"})
        return {"rows": float(corpus.count())}

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for first in range(self.start, self.start + self.count, 256):
            rows = []
            for number in range(first, min(first + 256, self.start + self.count)):
                values, mask = body(number, self.size, self.noise)
                if self.crop:
                    part = around(mask, number, self.crop)
                    values, mask = values[part], mask[part]
                rows.append(
                    {
                        "id": f"body-{number:06d}", "number": number, "array": packed(values[None]), "spacing": [1.0] * 3,
                        "mask": packed(mask), "organ": 1 + int(voxels(mask).argmax()),
                    }
                )  # fmt: skip
            yield pa.RecordBatch.from_pylist(rows, schema)


def body(number: int, size: int, noise: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Values and organs (0 background, 1 to 5) of body `number`, (size, size, size // 3) each."""
    rng = np.random.default_rng([9, number])
    shape = (size, size, size // 3)
    places = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n * 2 - 1 for n in shape], indexing="ij"))
    trunk = np.array([0.85, 0.7, 1.0]) * rng.uniform(0.92, 1.08, 3)
    local = (places - np.append(rng.uniform(-0.06, 0.06, 2), 0)[:, None, None, None]) / trunk[:, None, None, None]
    values = np.where((local[:2] ** 2).sum(0) < 1, 0.35 + 0.04 * _smooth(rng, shape), 0.05)
    mask = np.zeros(shape, np.uint8)
    brightness = [*rng.uniform(0.5, 0.8, ORGANS), 0.9]
    for organ, (centre, radii) in enumerate(zip(_PLACES, _RADII, strict=True), 1):
        moved, stretched = centre + rng.normal(0, 0.04, 3), radii * rng.uniform(0.85, 1.15, 3)
        inside = (((local - moved[:, None, None, None]) / stretched[:, None, None, None]) ** 2).sum(0) < 1
        values = np.where(inside, brightness[organ - 1] + 0.04 * _smooth(rng, shape), values)
        mask[inside] = organ if organ <= ORGANS else 0
    values = values + noise * rng.normal(size=shape)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8), mask


def around(mask: NDArray[np.uint8], number: int, side: int) -> tuple[slice, ...]:
    """A cube in which organ 1 + number mod 5 has most voxels: the first such of those drawn, else that with the largest share of it."""
    rng = np.random.default_rng([90, number])
    begins = np.floor(rng.random((_TRIES, 3)) * (np.array(mask.shape) - side + 1)).astype(int)
    parts = [tuple(slice(b, b + side) for b in begin) for begin in begins.tolist()]
    counts = np.stack([voxels(mask[part]) for part in parts])
    wanted = counts[:, number % ORGANS]
    most = (counts.argmax(1) == number % ORGANS) & (wanted > 0)
    return parts[int(most.argmax() if most.any() else wanted.argmax())]


def voxels(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Of each organ, (5,)."""
    return np.bincount(mask.ravel(), minlength=1 + ORGANS)[1:]


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Gaussian noise smoothed over 1.5 voxels, of variance 1."""
    field = gaussian_filter(rng.normal(size=shape), 1.5, mode="wrap")
    return field / field.std()  # type: ignore[no-any-return]
