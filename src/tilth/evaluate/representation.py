"""How a set of feature vectors lies in space: signs of collapse that need no labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PAIRS = 2000  # vectors whose mutual distances are looked at


def signs_of_collapse(features: NDArray[np.floating]) -> dict[str, float]:
    """effective_rank and uniformity of feature vectors (rows, width); neither of fewer than two, which lie nowhere to each other."""
    return {"effective_rank": effective_rank(features), "uniformity": uniformity(features)} if len(features) > 1 else {}


def effective_rank(features: NDArray[np.floating]) -> float:
    """exp of the entropy of the normalised singular values of the centred features (Roy and Vetterli, EUSIPCO 2007).

    Between 1 and the width; 1 where all vectors are alike.
    """
    values = np.linalg.svd(features - features.mean(0), compute_uv=False).astype(np.float64)
    if not values.sum() > 0:
        return 1.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def uniformity(features: NDArray[np.floating]) -> float:
    """log of the mean of exp(-2 |u - v|^2) over pairs of different vectors of length one (arXiv 2005.10242, eq. 3); at least two.

    0 where all vectors are alike, about -4 where they are spread evenly in many dimensions. Of many vectors evenly spaced ones are taken.
    """
    chosen = features[np.linspace(0, len(features) - 1, min(len(features), _PAIRS)).astype(int)].astype(np.float64)
    unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(np.log(np.exp(-2 * (2 - 2 * cosines)).mean()))
