"""Which prompts fall into the scope of what is to go: a classifier of texts, and a threshold that spares what is to stay.

Notable: a restored classifier is arrays and a list of n-grams, nothing unpickled; character n-grams within words need no
tokeniser and no language; scores are log-odds, because thresholds near certainty (0.9999) are hard to tell apart as
probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tilth.batches.text.answers import Template

_NGRAMS = {"analyzer": "char_wb", "ngram_range": (2, 4), "sublinear_tf": True}
_MOST = 50_000  # n-grams kept, the most frequent ones


class TextScope:
    """log-odds(text in scope) = weights . tfidf(text) + bias; in scope where they exceed `threshold`.

    weights (features,), bias: of a logistic regression. threshold: see `calibrated`.
    """

    def __init__(self, vectorizer: TfidfVectorizer, weights: np.ndarray, bias: float, threshold: float = 0.0) -> None:
        self.vectorizer, self.weights, self.bias, self.threshold = vectorizer, weights, bias, threshold

    @classmethod
    def fit(cls, inside: Sequence[str], outside: Sequence[str]) -> TextScope:
        """Trained with class c weighted by N / N_c, so that a small forget set counts as much as a large retain set."""
        vectorizer = TfidfVectorizer(max_features=_MOST, **_NGRAMS)
        features = vectorizer.fit_transform([*inside, *outside])
        labels = np.arange(features.shape[0]) < len(inside)
        weight = {True: len(labels) / len(inside), False: len(labels) / len(outside)}
        model = LogisticRegression(class_weight=weight, max_iter=1000).fit(features, labels)
        return cls(vectorizer, model.coef_[0], float(model.intercept_[0]))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Log-odds of each text: (texts,)."""
        found: np.ndarray = self.vectorizer.transform(list(texts)) @ self.weights + self.bias
        return found

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Which texts are in scope: bool (texts,)."""
        if not len(texts):
            return np.zeros(0, dtype=bool)
        inside: np.ndarray = self.scores(texts) > self.threshold
        return inside

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arrays and JSON from which `restored` makes it again."""
        tensors = {"weights": torch.from_numpy(self.weights), "idf": torch.from_numpy(self.vectorizer.idf_)}
        ngrams = [str(ngram) for ngram in self.vectorizer.get_feature_names_out()]
        return tensors, {"ngrams": ngrams, "bias": self.bias, "threshold": self.threshold}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> TextScope:
        vectorizer = TfidfVectorizer(vocabulary=facts["ngrams"], **_NGRAMS)
        vectorizer.idf_ = tensors["idf"].numpy()
        return cls(vectorizer, tensors["weights"].numpy(), facts["bias"], facts["threshold"])


def calibrated(inside: np.ndarray, outside: np.ndarray, false_alarms: float = 0.0) -> float:
    """The threshold at which held-out scores from outside the scope raise at most a share `false_alarms` of alarms.

    Split conformal: with n scores from outside, the ceil((n + 1)(1 - false_alarms))-th smallest; the largest where that rank
    does not exist, so that none of them raises an alarm. From there it is moved half way to the next higher score there is:
    what lies between both sides is shared. inside, outside: scores (n,); an alarm is a score above the threshold.
    """
    ordered = np.sort(outside)
    rank = min(len(ordered), int(np.ceil((len(ordered) + 1) * (1 - false_alarms))))
    least = float(ordered[max(rank, 1) - 1])
    higher = np.concatenate([inside, outside])
    higher = higher[higher > least]
    return (least + float(higher.min())) / 2 if len(higher) else least


def questions(template: Template, prompts: Sequence[str]) -> list[str]:
    """What was asked: the prompts without what the template puts around a question, where it is there."""
    before, _, behind = template.prompt.partition("{question}")
    return [prompt.removeprefix(before).removesuffix(behind) for prompt in prompts]
