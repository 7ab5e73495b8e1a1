"""How well a model that was adapted to classes tells them apart."""

from pathlib import Path
from typing import Annotated

import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from tilth.adapt.adapt import Reading, labelled
from tilth.adapt.classifier import Classifier
from tilth.context import Context
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Scores, method


@method("benchmark", "classification")
class Classification(Benchmark):
    """`accuracy` and `macro_f1`, the mean of F1 over the classes of `data`, and F1 per class in a table.

    data: labelled rows. Models: what the stage `adapt` makes (fine-tuned, or an estimator on frozen features) and sequence
    classifiers of transformers. A class the model does not know is an error. column: of the texts ('text'); batches: how other rows
    are read (as the model was built for).
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        column: str | None = None,
        label: str = "label",
        batches: Annotated[Configured, Kind("batches")] | None = None,
    ) -> None:
        self.data, self.column, self.label, self.batches = data, column, label, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the model is not a classifier, a column is missing or a label is unknown."""
        classifier = Classifier.load(model)
        corpus = context.corpus(self.data)
        truth, classes = labelled(corpus, self.label, classifier.classes)
        probabilities = classifier.probabilities(Reading(classifier.text_model, self.column, self.batches, context)(corpus))
        guess = probabilities.argmax(1)
        there = np.unique(truth)
        precision, recall, f1, count = precision_recall_fscore_support(truth, guess, labels=there, zero_division=0)
        context.exhibit(
            "table",
            "Classes",
            columns=["class", "rows", "precision", "recall", "F1"],
            rows=[
                [classes[index], *values]
                for index, *values in zip(there.tolist(), count.tolist(), precision.tolist(), recall.tolist(), f1.tolist())
            ],
            note=f"{len(truth):,} rows.",
        )
        return Scores(
            {"accuracy": float(accuracy_score(truth, guess)), "macro_f1": float(f1.mean())},
            {
                "id": corpus.table(["id"]).column("id").to_pylist(),
                "label": [classes[index] for index in truth],
                "predicted": [classes[index] for index in guess],
                "probability_of_label": probabilities[np.arange(len(truth)), truth].tolist(),
            },
        )
