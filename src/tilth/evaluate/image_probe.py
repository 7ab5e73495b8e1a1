"""What a frozen encoder's features hold: nearest neighbours and a linear probe on few or many labels, with raw pixels as a floor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import torch
from annotated_types import Len
from numpy.typing import NDArray

from tilth.adapt.adapt import labelled
from tilth.adapt.knn import KNN
from tilth.adapt.linear_probe import LinearProbe
from tilth.backbones.folder import load
from tilth.backbones.picture_features import Pool, picture_features
from tilth.batches.examples import Chosen, reading
from tilth.batches.images.pictures import PixelRows, natural
from tilth.contracts import Benchmark, Configured, CorpusRef, Examples, Kind, Scores, method
from tilth.errors import TilthError
from tilth.evaluate.representation import signs_of_collapse
from tilth.noise import hashed_uniform
from tilth.registry import Positive, PositiveInt, plain

if TYPE_CHECKING:
    from tilth.context import Context


@method("benchmark", "image_probe", systems=[88])
class ImageProbe(Benchmark):
    """Metrics: knn_accuracy, linear_accuracy on `test`; raw_knn_accuracy (pixels for features); effective_rank, uniformity of
    the test rows' features, of two rows or more; layer, where several were given. linear: whether that probe is fitted, which takes
    longest where features are wide.

    train, test: labelled rows. label: the class's column. per_class: labelled training rows of each class, drawn with the seed;
    None: all. neighbours: of k-NN by cosine, at most the labelled rows. C: of the logistic regression on standardised features,
    None: by cross-validation. layer: the block whose outputs are probed, None: the last, normalised; of several the one whose
    features let four fifths of the labelled rows tell most of the others by nearest neighbours. pool: see `picture_features`; pixels
    keep what lies where, as do 'tokens'. standardise: features, and pixels, by column before neighbours are sought. batches: None:
    as the model was built for.
    """

    def __init__(
        self,
        *,
        train: CorpusRef,
        test: CorpusRef,
        label: str = "label",
        per_class: PositiveInt | None = None,
        neighbours: PositiveInt = 20,
        C: Positive | None = 1.0,
        linear: bool = True,
        layer: PositiveInt | Annotated[list[PositiveInt], Len(1)] | None = None,
        pool: Pool = "encoder",
        standardise: bool = False,
        batches: Annotated[Configured, Kind("batches")] | None = None,
    ) -> None:
        self.train, self.test, self.label, self.per_class, self.neighbours = train, test, label, per_class, neighbours
        self.C, self.linear, self.layer, self.pool, self.standardise, self.batches = C, linear, layer, pool, standardise, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        network = load(model).model
        labels, classes = labelled(context.corpus(self.train), self.label)
        truth, _ = labelled(context.corpus(self.test), self.label, classes)
        chosen = few(labels, self.per_class, context.seed)
        how = self.batches or reading(network, context.corpus(self.train))
        train, test = (how.build().build(context.corpus(name), None, context) for name in (self.train, self.test))
        y, rows = labels[chosen], Chosen(train, chosen)
        if isinstance(self.layer, list):
            layer, known = self._told_most(network, rows, y, context.seed)
        else:
            layer, known = self.layer, picture_features(network, rows, layer=self.layer, pool=self.pool)
        asked = picture_features(network, test, layer=layer, pool=self.pool)
        knn = self._neighbours(len(chosen)).fit(known, y)
        parts = {
            "data": [context.corpus(name).fingerprint for name in (self.train, self.test)], "label": self.label, "batches": plain(how),
            "rows": chosen.tolist() if self.per_class else None, "neighbours": knn.k,
            "standardise": self.standardise,
        }  # fmt: skip

        def raw(folder: Path) -> None:
            """Pixels are the same for every model: scored once."""
            floor = self._neighbours(len(chosen)).fit(_flat(train, chosen), y).predict(_flat(test, np.arange(len(test))))
            np.save(folder / "accuracy.npy", (floor == truth).mean())

        probe = LinearProbe(C=self.C).fit(known, y) if self.linear else None
        return Scores(
            {
                "knn_accuracy": float((knn.predict(asked) == truth).mean()),
                **({"linear_accuracy": float((probe.predict(asked) == truth).mean())} if probe else {}),
                "raw_knn_accuracy": float(np.load(context.cache("raw-knn", parts, raw) / "accuracy.npy")),
                **signs_of_collapse(asked),
                **({"layer": float(layer)} if isinstance(self.layer, list) and layer else {}),
            }
        )

    def _neighbours(self, rows: int) -> KNN:
        return KNN(k=min(self.neighbours, rows), standardise=self.standardise)

    def _told_most(self, network: Any, rows: Examples, y: NDArray[np.int64], seed: int) -> tuple[int | None, NDArray[np.float32]]:
        """Of the given layers the best by rows held out of those that are labelled, the first of equals, and the features of all of
        these; TilthError where they are too few."""
        held = hashed_uniform(seed, "held out", np.arange(len(y))) < 0.2
        if not 0 < held.sum() < len(y):
            raise TilthError(
                f"{len(y)} labelled rows are too few to choose a layer by", where="image_probe.layer", hint="Name one."
            )
        best, most, kept = None, -1.0, np.zeros((0, 0), np.float32)
        for layer in cast(list[int], self.layer):
            features = picture_features(network, rows, layer=layer, pool=self.pool)
            knn = self._neighbours(int((~held).sum())).fit(features[~held], y[~held])
            told = float((knn.predict(features[held]) == y[held]).mean())
            if told > most:
                best, most, kept = layer, told, features
        return best, kept


def few(labels: NDArray[np.int64], per_class: int | None, seed: int) -> NDArray[np.int64]:
    """Numbers of `per_class` rows of each class (all without), ascending. Raises TilthError for a class with fewer."""
    if per_class is None:
        return np.arange(len(labels))
    order = np.lexsort((hashed_uniform(seed, "few", np.arange(len(labels))), labels))
    starts = np.searchsorted(labels[order], np.unique(labels))
    if np.diff(np.append(starts, len(labels))).min() < per_class:
        raise TilthError(f"a class has fewer than {per_class} labelled rows", where="per_class")
    return np.sort(order[(starts[:, None] + np.arange(per_class)).ravel()])


def _flat(rows: PixelRows, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Pixels of each example in a row, standardised by channel as an encoder gets them."""
    values = natural(torch.from_numpy(rows.pixels[chosen])).numpy()
    mean, std = (np.reshape(part, (-1, *[1] * len(rows.sample.size))) for part in (rows.sample.mean, rows.sample.std))
    return ((values - mean) / std).reshape(len(values), -1).astype(np.float32)
