"""Generated volumes: pictures pulled through the depth, turning on their way, in noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.corpus.pictures import decoded
from tilth.errors import TilthError
from tilth.registry import NonNegative, NonNegativeInt, PositiveInt

_BATCH = 256


@method("stage", "extruded", systems=[82])
class Extruded(Stage):
    """Volumes whose every plane shows the same object, turned about the middle by an angle that changes evenly with the depth.

    data: rows with `image` (bright object on black) and `label`. copies: volumes made of each row; size: voxels along each axis.
    degrees: the first and the last plane's angles are uniform [-degrees, degrees] each. noise: standard deviation of what is added
    to a plane's values, in [0, 1], is uniform [0, noise] at the first and the last and changes evenly between. first: number of the
    first volume; those of equal number share angles and noise, so sets that are to have nothing in common need different ones.

    Columns: id, number, array (.npy, uint8 (1, size, size, size): channel, height, width, depth) and label.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        data: CorpusRef,
        copies: PositiveInt = 1,
        size: PositiveInt = 24,
        degrees: NonNegative = 45.0,
        noise: NonNegative = 0.5,
        first: NonNegativeInt = 0,
    ) -> None:
        self.data, self.copies, self.size, self.degrees, self.noise, self.first = data, copies, size, degrees, noise, first

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        objects = context.corpus(self.data)
        schema = pa.schema(
            [("id", pa.string()), ("number", pa.int64()), ("array", pa.large_binary()), objects.schema.field("label")]
        )
        corpus = Corpus.write(context.folder / "corpus.lance", self._batches(objects, schema), schema)
        return {"rows": float(corpus.count())}

    def _batches(self, objects: Corpus, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        number = self.first
        for table in objects.scan(["image", "label"], batch_size=_BATCH):
            rows = []
            for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
                cover = decoded(image, 1)[0] / 255
                for _ in range(self.copies):
                    values = extruded(cover, self.size, self.degrees, self.noise, np.random.default_rng([82, number]))
                    rows.append({"id": f"volume-{number:06d}", "number": number, "array": packed(values[None]), "label": label})
                    number += 1
            yield pa.RecordBatch.from_pylist(rows, schema)
        if number == self.first:
            raise TilthError("there is nothing to extrude", where=self.data, hint="Check the predicate of its rows.")


def extruded(cover: NDArray[np.float64], size: int, degrees: float, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An object (height, width), in [0, 1], as a volume (size, size, size), the depth last."""
    (begin, end), (low, high) = rng.uniform(-degrees, degrees, 2), rng.uniform(0, noise, 2)
    angles, levels = np.deg2rad(np.linspace(begin, end, size)), np.linspace(low, high, size)
    shrink, middle = (np.array(cover.shape) / size)[:, None], (np.array(cover.shape) - 1) / 2
    planes = []
    for angle in angles:
        back = shrink * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = middle - back @ np.full(2, (size - 1) / 2)
        planes.append(affine_transform(cover, back, centre, (size, size), order=1))
    values = np.stack(planes, -1) + levels * rng.normal(size=(size, size, size))
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)
