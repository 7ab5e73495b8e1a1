"""Handwritten digits that come with scikit-learn: images to try a method on, without any file."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_digits

from tilth.context import Context
from tilth.contracts import Stage, method
from tilth.corpus import Corpus
from tilth.corpus.pictures import encoded
from tilth.noise import hashed_uniform
from tilth.registry import Fraction


@method("stage", "digits", systems=[19, 35])
class Digits(Stage):
    """1797 grey images of 8 x 8 pixels in ten classes (UCI optical recognition of handwritten digits, test part).

    Columns: id, image (PNG), label (0-9), part ('train', or 'test' for a share of `test` by hash) and draw (uniform in
    [0, 1), independent of part), so that predicates can say which share of which class.
    """

    gives = "corpus"
    seeded = False

    def __init__(self, *, test: Fraction = 0.25) -> None:
        self.test = test

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        images, labels = load_digits(return_X_y=True)
        rows = np.arange(len(labels))
        table = pa.table(
            {
                "id": [f"digit-{row:04d}" for row in rows],
                "image": pa.array(_encoded(images), pa.large_binary()),
                "label": pa.array(labels, pa.int64()),
                "part": np.where(hashed_uniform(0, "part", rows) < self.test, "test", "train").tolist(),
                "draw": hashed_uniform(0, "draw", rows),
            }
        )
        corpus = Corpus.write(context.folder / "corpus.lance", table.to_batches(), table.schema)
        return {"rows": float(corpus.count())}


def _encoded(images: np.ndarray) -> Iterator[bytes]:
    """Each row of 64 values from 0 to 16 as a PNG."""
    for values in images:
        yield encoded((values.reshape(8, 8) * 255 / 16).round().astype(np.uint8))
