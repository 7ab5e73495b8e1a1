"""Does an attacker who could tell members of the original model still find them in the unlearned one?"""

import numpy as np
from sklearn.svm import LinearSVC


def member_transfer_rate(
    members: np.ndarray, strangers: np.ndarray, unlearned: np.ndarray, *, C: float = 1.0
) -> tuple[float, float]:
    """Share of forgotten examples that a linear SVM, fitted on the original model, calls non-members in the unlearned one.

    members, strangers (examples, outputs): the original model's outputs for the forgotten examples and for unseen ones;
    unlearned (examples, outputs): the unlearned model's outputs for the forgotten examples. Also gives the share of `members`
    the SVM misses itself: what an unchanged model scores.
    """
    outputs = np.concatenate([members, strangers])
    svm = LinearSVC(C=C, dual=False).fit(outputs, np.repeat([1, 0], [len(members), len(strangers)]))
    return float((svm.predict(unlearned) == 0).mean()), float((svm.predict(members) == 0).mean())
