"""Generated pictures: objects pasted at any angle, scale and place on textured canvases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.corpus.pictures import decoded, encoded
from tilth.errors import TilthError
from tilth.registry import NonNegative, Positive, PositiveInt

_BATCH = 256


@method("stage", "pasted", systems=[7])
class Pasted(Stage):
    """Grey pictures with one object each, its brightness there standing for how much it covers.

    data: rows with `image` (bright object on black) and `label`. count: pictures; each shows a row of `data` at random. size: of
    the canvas in pixels. scale: bounds of the object's side as a share of the canvas, uniform. degrees: angles are uniform
    [-degrees, degrees]. Two stages that differ in `degrees` alone show the same objects at the same places and scales on the same canvases.

    Columns: id, number (from 0), image (PNG) and label.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        data: CorpusRef,
        count: PositiveInt = 8000,
        size: PositiveInt = 48,
        scale: tuple[Positive, Positive] = (0.8, 1.0),
        degrees: NonNegative = 180.0,
    ) -> None:
        if scale[0] > scale[1]:
            raise TilthError(f"scales from {scale[0]} to {scale[1]} are none", where="pasted.scale")
        self.data, self.count, self.size, self.scale, self.degrees = data, count, size, scale, degrees

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        objects = context.corpus(self.data)
        schema = pa.schema(
            [("id", pa.string()), ("number", pa.int64()), ("image", pa.large_binary()), objects.schema.field("label")]
        )
        corpus = Corpus.write(context.folder / "corpus.lance", self._batches(objects, schema), schema)
        return {"rows": float(corpus.count())}

    def _batches(self, objects: Corpus, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        available = objects.count()
        if not available:
            raise TilthError("there is nothing to paste", where=self.data, hint="Check the predicate of its rows.")
        for start in range(0, self.count, _BATCH):
            numbers = range(start, min(start + _BATCH, self.count))
            generators = [np.random.default_rng([7, number]) for number in numbers]
            rows = np.array([rng.integers(available) for rng in generators])
            chosen, where = np.unique(rows, return_inverse=True)
            table = objects.take(chosen, ["image", "label"])
            cover = [decoded(data, 1)[0] / 255 for data in table["image"].to_pylist()]
            labels = table["label"].to_pylist()
            yield pa.RecordBatch.from_pylist(
                [
                    {
                        "id": f"picture-{number:06d}", "number": number, "label": labels[at],
                        "image": encoded(pasted(cover[at], self.size, self.scale, self.degrees, rng)),
                    }
                    for number, at, rng in zip(numbers, where.tolist(), generators, strict=True)
                ],
                schema,
            )  # fmt: skip


def pasted(
    cover: NDArray[np.float64], size: int, scale: tuple[float, float], degrees: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """An object (height, width), in [0, 1], on a canvas (size, size).

    The canvas is smoothed noise about a brightness of its own, the object brighter than that by 0.4 to 0.6.
    """
    turn, side, *place = rng.uniform(-1, 1, 4)
    radians = np.deg2rad(degrees * turn)
    side = size * (scale[0] + (scale[1] - scale[0]) * (side + 1) / 2)
    # The whole object stays on the canvas at angle 0; where it is too large for that it lies in the middle.
    centre = (size - 1) / 2 + np.array(place) * max(0.0, (size - side) / 2)
    cover = np.pad(cover, 1)  # strokes that touch the object's edge end softly
    shrink = np.array(cover.shape) / side
    back = shrink[:, None] * np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    middle = (np.array(cover.shape) - 1) / 2
    shown = affine_transform(cover, back, middle - back @ centre, (size, size), order=1)
    level, contrast, grain, brighter = rng.uniform([0.2, 0.03, 1.0, 0.4], [0.4, 0.08, 3.0, 0.6])
    rough = gaussian_filter(rng.normal(size=(size, size)), grain, mode="wrap")
    canvas = level + contrast * rough / rough.std()
    values: NDArray[np.float64] = canvas + shown * (level + brighter - canvas)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)
