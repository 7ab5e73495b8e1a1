"""Linear probe: logistic regression on frozen features, the plainest question about what a representation holds."""

from typing import Any, ClassVar

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.utils.validation import check_is_fitted, validate_data

from tilth.adapt.standardise import scaling
from tilth.contracts import Estimator, method
from tilth.registry import Positive, PositiveInt

_GRID = np.logspace(-4, 4, 9)


@method("adapt", "linear_probe")
class LinearProbe(ClassifierMixin, BaseEstimator, Estimator):
    """Multinomial logistic regression with an L2 penalty (L-BFGS), on standardised features.

    C: inverse strength of the penalty; None chooses it among 1e-4 ... 1e4 by stratified 5-fold cross-validation (fewer
    folds where a class has fewer examples). standardise: subtract each feature's mean and divide by its deviation first.
    Raises ValueError for a single class. Attributes: coef_ (classes, features), intercept_, C_ (the C used), classes_.
    """

    fitted: ClassVar[tuple[str, ...]] = ("coef_", "intercept_", "mean_", "scale_")

    def __init__(self, *, C: Positive | None = 1.0, standardise: bool = True, max_iter: PositiveInt = 1000) -> None:
        self.C = C
        self.standardise = standardise
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Learn to tell the classes y (examples,) from X (examples, features); gives the estimator itself."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        self.mean_, self.scale_ = scaling(X, self.standardise)
        X = (X - self.mean_) / self.scale_
        self.C_ = self.C if self.C is not None else self._best(X, y)
        regression = LogisticRegression(C=self.C_, max_iter=self.max_iter).fit(X, y)
        self.classes_, self.n_iter_ = regression.classes_, regression.n_iter_
        two = len(self.classes_) == 2  # scikit-learn keeps one row then: the log-odds of the second class
        coef = np.concatenate([np.zeros_like(regression.coef_), regression.coef_]) if two else regression.coef_
        self.coef_ = np.ascontiguousarray(coef)  # as it is read from disk: another layout may differ in the last bit
        self.intercept_ = np.concatenate([[0.0], regression.intercept_]) if two else regression.intercept_
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (examples, classes); of two classes the log-odds of the second (examples,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (examples, classes)."""
        return np.asarray(softmax(self._logits(X), axis=1))

    def predict(self, X: Any) -> np.ndarray:
        best = self._logits(X).argmax(1)
        return np.asarray(self.classes_[best])

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray((X - self.mean_) / self.scale_ @ self.coef_.T + self.intercept_)

    def _best(self, X: np.ndarray, y: np.ndarray) -> float:
        folds = min(5, int(np.unique(y, return_counts=True)[1].min()))
        if folds < 2:
            raise ValueError("a class has a single example, so C cannot be cross-validated; give C")
        search = GridSearchCV(LogisticRegression(max_iter=self.max_iter), {"C": _GRID}, cv=StratifiedKFold(folds), refit=False)
        return float(search.fit(X, y).best_params_["C"])
