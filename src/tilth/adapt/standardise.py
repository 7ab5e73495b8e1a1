"""The means and deviations by which an estimator scales its features."""

import numpy as np
from sklearn.preprocessing import StandardScaler


def scaling(X: np.ndarray, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of X (examples, features): means and deviations (features,), 1 for a feature that does not vary; unwanted: 0 and 1."""
    if not wanted:
        return np.zeros(X.shape[1], X.dtype), np.ones(X.shape[1], X.dtype)
    fitted = StandardScaler().fit(X)
    return fitted.mean_.astype(X.dtype), fitted.scale_.astype(X.dtype)
