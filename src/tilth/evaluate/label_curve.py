"""How accuracy grows with labels: a linear probe on frozen features, from a few labels of each class to all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from tilth.adapt.adapt import Reading, labelled
from tilth.adapt.linear_probe import LinearProbe
from tilth.backbones.folder import load
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Scores, method
from tilth.evaluate.image_probe import few
from tilth.registry import Positive, PositiveInt

if TYPE_CHECKING:
    from tilth.context import Context


@method("benchmark", "label_curve", systems=[88])
class LabelCurve(Benchmark):
    """`accuracy_N` on `test` of a linear probe on N labelled training rows of each class, the mean over `draws` draws of them.

    Texts or pictures, as the model reads. label: the class's column. C: of the logistic regression on standardised features.
    batches: how rows of something else than text are read, None: as the model was built for.
    """

    def __init__(
        self,
        *,
        train: CorpusRef,
        test: CorpusRef,
        label: str = "label",
        per_class: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20, 50),
        draws: PositiveInt = 3,
        C: Positive = 1.0,
        batches: Annotated[Configured, Kind("batches")] | None = None,
    ) -> None:
        self.train, self.test, self.label, self.per_class, self.draws = train, test, label, list(per_class), draws
        self.C, self.batches = C, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        read = Reading(load(model), None, self.batches, context)
        known, asked = context.corpus(self.train), context.corpus(self.test)
        labels, classes = labelled(known, self.label)
        truth, _ = labelled(asked, self.label, classes)
        inside, outside = read.features(known, read(known)), read.features(asked, read(asked))
        metrics = {}
        for count in self.per_class:
            chosen = [few(labels, count, 1000 * context.seed + draw) for draw in range(self.draws)]
            right = [(LinearProbe(C=self.C).fit(inside[rows], labels[rows]).predict(outside) == truth).mean() for rows in chosen]
            metrics[f"accuracy_{count}"] = float(np.mean(right))
        points = [[count, metrics[f"accuracy_{count}"]] for count in self.per_class]
        context.exhibit("curves", "Accuracy by labels", series={"linear probe": points}, x="labels of each class", y="accuracy")
        return Scores(metrics)
