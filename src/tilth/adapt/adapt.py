"""Fit a model to a labelled task: an estimator on its frozen features, or all of it.

Notable: features are computed once per model and corpus and shared by all methods, seeds and runs; what is written is an
ordinary model folder, with the estimator beside the weights, so that the result is one thing to keep (`Classifier`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score

from tilth.adapt.classifier import ESTIMATOR, Classifier
from tilth.adapt.estimators import save as save_estimator
from tilth.adapt.fine_tune import classifier
from tilth.backbones.features import Content, features_of
from tilth.backbones.fingerprint import fingerprint
from tilth.backbones.folder import TextModel, save
from tilth.batches.examples import reading
from tilth.batches.text.labelled import class_indices
from tilth.context import Context
from tilth.contracts import Configured, Estimator, use
from tilth.corpus import Corpus
from tilth.errors import TilthError, nearest
from tilth.registry import plain
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training


@dataclass(frozen=True)
class Adapted:
    """metrics: accuracy and macro_f1 on the test rows (the training rows without any), train_accuracy. folder: of the model."""

    metrics: Mapping[str, float]
    folder: Path


def adapt(
    text_model: TextModel,
    corpus: Corpus,
    *,
    method: Configured,
    test: Corpus | None = None,
    label: str = "label",
    column: str | None = None,
    length: int = 256,
    batches: Configured | None = None,
    training: Training = Training(),
    budget: Budget = Budget(epochs=3),
    context: Context,
) -> Adapted:
    """Learn the classes in `label` from the texts in `column`, or from what `batches` make of the rows where the model reads
    something else than text, and write the result to context.folder / 'model'.

    method: of kind 'adapt'. test: labelled rows that are only scored. column: 'text' or 'image' if None. batches: None: as the
    model was built for. length: tokens of a text when the model is fine-tuned; training and budget matter only then. Raises TilthError for a missing column, a missing label, a class of the test rows
    that the training rows lack, a single class, or fewer rows than neighbours.
    """
    read = Reading(text_model, column, batches, context)
    indices, classes = labelled(corpus, label)
    if len(classes) < 2:
        raise TilthError(
            f"there is only one class, '{classes[0]}'", where=corpus.uri, hint=f"Is '{label}' the column of the labels?"
        )
    sets = {"train": (corpus, read(corpus), indices)}
    if test is not None:
        sets["test"] = (test, read(test), labelled(test, label, classes)[0])
    folder = context.folder / "model"
    about = {
        **text_model.about,
        "history": [*text_model.about.get("history", []), {"data": corpus.fingerprint, "adapt": plain(method), "label": label}],
    }
    if issubclass(method.cls, Estimator):
        estimator = method.build()
        try:
            estimator.fit(read.features(*sets["train"][:2]), np.array(classes)[indices])
        except ValueError as error:  # how scikit-learn says that data and settings do not go together
            raise TilthError(f"{method.name}: {error}", where=corpus.uri) from error
        save(text_model.model, text_model.tokenizer, folder, about)
        save_estimator(estimator, folder / ESTIMATOR)
        adapted = Classifier(text_model, classes, estimator)
        said = {name: estimator.predict_proba(read.features(c, content)) for name, (c, content, _) in sets.items()}
    else:
        torch.manual_seed(context.seed)
        network = classifier(text_model, classes, getattr(method.cls, "pool", "encoder"))
        adapted = Classifier(TextModel(network, text_model.tokenizer, about), classes, None, length)
        if text_model.tokenizer is None:
            how = read.how(corpus)
            examples = use("batches", how.name, **{**how.settings, "label": label, "classes": classes})
        else:
            examples = use("batches", "labelled", length=length, classes=classes, column=column or "text", label=label)
        fit(
            method.build(adapted.text_model.model), examples.build().build(corpus, text_model.tokenizer, context),
            training=training, budget=budget, folder=context.folder, seed=context.seed, progress=context.progress,
        )  # fmt: skip
        save(adapted.text_model.model, text_model.tokenizer, folder, {**about, "length": length})
        said = {name: adapted.probabilities(t) for name, (_, t, _) in sets.items()}
    scored = "test" if test is not None else "train"
    if test is None:
        context.progress.say("there are no test rows: accuracy is that on the training rows")
    truth, guess = sets[scored][2], said[scored].argmax(1)
    metrics = {
        "accuracy": float(accuracy_score(truth, guess)),
        "macro_f1": float(f1_score(truth, guess, average="macro")),
        "train_accuracy": float(accuracy_score(indices, said["train"].argmax(1))),
    }
    return Adapted(metrics, folder)


@dataclass(frozen=True)
class Reading:
    """What a model reads of a corpus, and the features it makes of that."""

    text_model: TextModel
    column: str | None
    batches: Configured | None
    context: Context

    def how(self, corpus: Corpus) -> Configured:
        """How rows of something else than text become examples: as the model was built for, unless it is said."""
        return self.batches or reading(self.text_model.model, corpus)

    def __call__(self, corpus: Corpus) -> Content:
        """The texts of the column, or examples. Raises TilthError for a missing column."""
        if self.text_model.tokenizer is None:
            return self.how(corpus).build().build(corpus, None, self.context)  # type: ignore[no-any-return]
        column = self.column or "text"
        if column not in corpus.columns:
            raise TilthError(f"the corpus has no column '{column}'", where=corpus.uri, hint=nearest(column, corpus.columns))
        return [text or "" for text in corpus.table([column]).column(column).to_pylist()]

    def features(self, corpus: Corpus, content: Content) -> np.ndarray:
        """Frozen features of the corpus, float32 (rows, width); computed once per model and corpus."""

        def make(folder: Path) -> None:
            np.save(folder / "features.npy", features_of(self.text_model, content))

        parts = {
            "model": fingerprint(self.text_model.model),
            "data": corpus.fingerprint,
            "column": self.column,
            "batches": plain(self.batches),
        }
        return np.load(self.context.cache("features", parts, make) / "features.npy")


def labelled(corpus: Corpus, label: str, classes: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Class index of every row, and the classes (those given, or those of the corpus, sorted); TilthError names a missing column."""
    if not corpus.count():
        raise TilthError("the corpus is empty", where=corpus.uri, hint="Check its predicate ('where').")
    if label not in corpus.columns:
        raise TilthError(f"the corpus has no column '{label}'", where=corpus.uri, hint=nearest(label, corpus.columns))
    table = corpus.table(["id", label])
    return class_indices(table.column(label).to_pylist(), classes, table.column("id").to_pylist())
