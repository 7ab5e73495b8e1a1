"""Generated radar pictures: what pictures show, as one look of a coherent radar would see it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from tilth.batches.images.speckle import speckled
from tilth.context import Context
from tilth.contracts import CorpusRef, Noise, Stage, method
from tilth.corpus import Corpus
from tilth.corpus.pictures import decoded, encoded
from tilth.errors import TilthError
from tilth.registry import Fraction, NonNegativeInt, Positive, PositiveInt

_BATCH = 256


@method("stage", "speckled", systems=[13])
class Speckled(Stage):
    """Grey pictures of intensities: reflectivity times gamma speckle, drawn anew for each, cut at 1.

    data: rows with `image` (bright object on black) and `label`. copies: pictures made of each row; size: of their sides in pixels.
    background, object: reflectivity of black and of white, values between lie between; `looks` of speckle (variance 1 / looks).
    first: number of the first picture; those of equal number share their speckle, so sets that are to have nothing in common
    need different ones.

    Columns: id, number, image (PNG) and label.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        data: CorpusRef,
        copies: PositiveInt = 1,
        size: PositiveInt = 32,
        background: Fraction = 0.1,
        object: Positive = 0.4,
        looks: PositiveInt = 1,
        first: NonNegativeInt = 0,
    ) -> None:
        self.data, self.copies, self.size, self.looks, self.first = data, copies, size, looks, first
        self.background, self.object = background, object

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        objects = context.corpus(self.data)
        schema = pa.schema(
            [("id", pa.string()), ("number", pa.int64()), ("image", pa.large_binary()), objects.schema.field("label")]
        )
        corpus = Corpus.write(context.folder / "corpus.lance", self._batches(objects, schema), schema)
        if not (rows := corpus.count()):
            raise TilthError("there is nothing to look at", where=self.data, hint="Check the predicate of its rows.")
        return {"rows": float(rows)}

    def _batches(self, objects: Corpus, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        done = self.first
        for table in objects.scan(["image", "label"], batch_size=_BATCH):
            pictures = np.stack([decoded(image, 1, (self.size, self.size)) for image in table["image"].to_pylist()])
            numbers = done + np.arange(len(pictures) * self.copies)
            done += len(numbers)
            shown = torch.from_numpy(pictures).repeat_interleave(self.copies, 0).float() / 255
            mean = self.background + (self.object - self.background) * shown
            found = speckled(mean, torch.from_numpy(Noise(13, numbers).keys()), self.looks).clamp(max=1)
            values = (255 * found[:, 0]).round().to(torch.uint8).numpy()
            labels = [label for label in table["label"].to_pylist() for _ in range(self.copies)]
            yield pa.RecordBatch.from_pylist(
                [
                    {"id": f"look-{number:06d}", "number": number, "image": encoded(picture), "label": label}
                    for number, picture, label in zip(numbers.tolist(), values, labels, strict=True)
                ],
                schema,
            )
