"""k nearest neighbours by cosine on frozen features: what a representation holds without fitting anything."""

from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from tilth.adapt.standardise import scaling
from tilth.contracts import Estimator, method
from tilth.registry import Positive, PositiveInt

_CELLS = 2**24  # similarities held at once


@method("adapt", "knn")
class KNN(ClassifierMixin, BaseEstimator, Estimator):
    """Each of the k most similar training examples votes for its class with weight exp(cosine / temperature).

    The weighting of arXiv 1805.01978 (section 3.4), there with k = 200 and temperature 0.07 on a large training set.
    standardise: subtract each feature's mean and divide by its deviation first, so that none decides the cosine by its scale.
    Raises ValueError when there are fewer training examples than k. Attributes: features_ (examples, width; unit length), labels_,
    classes_.
    """

    fitted: ClassVar[tuple[str, ...]] = ("features_", "labels_", "mean_", "scale_")

    def __init__(self, *, k: PositiveInt = 5, temperature: Positive = 0.07, standardise: bool = False) -> None:
        self.k = k
        self.temperature = temperature
        self.standardise = standardise

    def fit(self, X: Any, y: Any) -> "KNN":
        """Keep X (examples, features), scaled to length one, and the classes y (examples,); gives the estimator itself."""
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        if len(X) < self.k:
            raise ValueError(f"k = {self.k} neighbours of n_samples = {len(X)} examples: give more examples or a smaller k")
        self.classes_, labels = np.unique(y, return_inverse=True)
        self.mean_, self.scale_ = scaling(X, self.standardise)
        self.features_, self.labels_ = self._unit(X), labels.astype(np.int64)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares of the votes (examples, classes)."""
        check_is_fitted(self)
        X = self._unit(validate_data(self, X, reset=False, dtype=[np.float32, np.float64]))
        parts = np.array_split(X, -(-len(X) * len(self.features_) // _CELLS))
        return np.concatenate([self._votes(part @ self.features_.T) for part in parts])

    def predict(self, X: Any) -> np.ndarray:
        best = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_[best])

    def _votes(self, cosine: np.ndarray) -> np.ndarray:
        """(examples, classes), rows summing to 1, from cosines (examples, training examples)."""
        nearest = np.argpartition(-cosine, self.k - 1, axis=1)[:, : self.k]
        near = np.take_along_axis(cosine, nearest, 1)
        weights = np.exp((near - near.max(1, keepdims=True)) / self.temperature)
        votes = np.zeros((len(cosine), len(self.classes_)))
        np.add.at(votes, (np.arange(len(cosine))[:, None], self.labels_[nearest]), weights)
        return votes / votes.sum(1, keepdims=True)

    def _unit(self, X: np.ndarray) -> np.ndarray:
        """Rows of length one, once scaled; a row of zeros stays."""
        X = (X - self.mean_) / self.scale_ if self.standardise else X
        length = np.linalg.norm(X, axis=1, keepdims=True)
        return np.asarray(X / np.where(length > 0, length, 1.0))
