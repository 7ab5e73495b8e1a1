"""Membership attacks on classifiers of images: from outputs alone, were these images trained on?

Notable: what to compare a rate with is the same attack on a model that never saw the images, not 50 %.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit


def attack_success_rate(members: np.ndarray, strangers: np.ndarray, forgotten: np.ndarray, *, seed: int = 0) -> float:
    """Accuracy of boosted trees on sorted probabilities that call the forgotten images members and unseen ones not (LAF's ASR).

    members, strangers, forgotten: logits (n, classes) of images that stay, that were never seen, and that were to be
    forgotten. 100 trees learn as many members as there are in half of `strangers`, and are asked about `forgotten` and
    the other half (arXiv 2404.00506, code).
    """
    random = np.random.default_rng(seed)
    half = len(strangers) // 2
    mixed = random.permutation(len(strangers))
    some = random.permutation(len(members))[:half]
    learnt = np.concatenate([_sorted(members[some]), _sorted(strangers[mixed[:half]])])
    trees = GradientBoostingClassifier(n_estimators=100, random_state=seed).fit(learnt, np.repeat([1, 0], [len(some), half]))
    asked = np.concatenate([_sorted(forgotten), _sorted(strangers[mixed[half:]])])
    truth = np.repeat([1, 0], [len(forgotten), len(strangers) - half])
    return float((trees.predict(asked) == truth).mean())


def loss_attack_gap(
    forgotten: np.ndarray, labels: np.ndarray, strangers: np.ndarray, stranger_labels: np.ndarray, *, seed: int = 0
) -> float:
    """|accuracy - 0.5| of a logistic regression on per-image losses, forgotten against unseen, over 10 stratified shuffles.

    forgotten, strangers: logits (n, classes). As many of each are compared (arXiv 2405.15662, code).
    """
    count = min(len(forgotten), len(strangers))
    random = np.random.default_rng(seed)
    losses = np.concatenate(
        [
            losses_of(logits, truth)[random.permutation(len(logits))[:count]]
            for logits, truth in ((forgotten, labels), (strangers, stranger_labels))
        ]
    )[:, None]
    truth = np.repeat([1, 0], [count, count])
    splits = StratifiedShuffleSplit(10, test_size=0.5, random_state=seed).split(losses, truth)
    right = [LogisticRegression().fit(losses[fit], truth[fit]).score(losses[ask], truth[ask]) for fit, ask in splits]
    return float(abs(np.mean(right) - 0.5))


def losses_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p(label) in nats: (n,)."""
    return -np.asarray(log_softmax(logits, 1))[np.arange(len(labels)), labels]


def _sorted(logits: np.ndarray) -> np.ndarray:
    """Probabilities of each image in ascending order."""
    return np.sort(np.asarray(softmax(logits, 1)), axis=1)
