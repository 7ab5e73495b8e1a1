"""A model that was adapted, ready to classify: whatever the method, one thing to load and ask."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from tilth.adapt.estimators import load as load_estimator
from tilth.backbones.evaluating import evaluating
from tilth.backbones.features import Content, features_of
from tilth.backbones.folder import TextModel, load
from tilth.batches.images.pictures import natural
from tilth.batches.text.encoding import pad_token
from tilth.batches.text.labelled import LabelledRows, encode_texts
from tilth.contracts import Examples, Noise
from tilth.errors import TilthError

ESTIMATOR = "estimator"  # folder inside the model's
_TOGETHER = 64


@dataclass
class Classifier:
    """classes: in the order of the columns of `probabilities`. estimator: on frozen features; None when the model itself
    classifies, which then reads at most `length` tokens of a text."""

    text_model: TextModel
    classes: list[str]
    estimator: Any | None = None
    length: int = 256

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """From a folder that `adapt` wrote, or any sequence classifier of transformers; TilthError if it is neither."""
        text_model = load(folder)
        if (folder / ESTIMATOR).is_dir():
            estimator = load_estimator(folder / ESTIMATOR)
            return cls(text_model, estimator.classes_.tolist(), estimator)
        if not type(text_model.model).__name__.endswith(("ForSequenceClassification", "PictureClassifier")):
            raise TilthError("this model is not a classifier", where=str(folder), hint="Adapt it first: tilth adapt MODEL DATA.")
        names: dict[int, str] = text_model.model.config.id2label or {}  # type: ignore[assignment]
        return cls(text_model, [names[index] for index in range(len(names))], None, text_model.about.get("length", 256))

    def probabilities(self, content: Content) -> np.ndarray:
        """(rows, classes) of texts, or of examples where the model reads something else."""
        if self.estimator is not None:
            return np.asarray(self.estimator.predict_proba(features_of(self.text_model, content)))
        if self.text_model.tokenizer is None:
            return self._of_pictures(cast(Examples, content))
        texts = cast(list[str], content)
        model, tokenizer = self.text_model.model, self.text_model.tokenizer
        ids, size, cut = encode_texts(texts, tokenizer, self.length)
        rows = LabelledRows(ids, size, np.zeros(len(ids), np.int64), self.classes, pad_token(tokenizer), cut)
        parts = np.array_split(np.argsort(-size, kind="stable"), -(-len(ids) // _TOGETHER))
        found = np.empty((len(ids), len(self.classes)), np.float32)
        with evaluating(model) as device:
            for part in parts:
                batch = rows.batch(part).to(device)
                logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
                found[part] = logits.float().softmax(1).cpu().numpy()
        return found

    def _of_pictures(self, examples: Examples) -> np.ndarray:
        model, found = self.text_model.model, np.empty((len(examples), len(self.classes)), np.float32)
        with evaluating(model) as device:
            for indices in np.array_split(np.arange(len(examples)), -(-len(examples) // (4 * _TOGETHER))):
                pixels = natural(examples.batch(indices, Noise(0, indices)).pixel_values.to(device))
                found[indices] = model(pixels).logits.float().softmax(1).cpu().numpy()
        return found

    def predict(self, content: Content) -> list[str]:
        """The most probable class of each row."""
        return [self.classes[index] for index in self.probabilities(content).argmax(1)]
