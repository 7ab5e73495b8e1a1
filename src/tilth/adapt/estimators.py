"""Estimators on disk: fitted arrays as safetensors, settings and classes as JSON; no pickle is written or read.

Notable: an estimator says which arrays make it up (`fitted`), so saving and loading stand here once.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tilth.errors import TilthError
from tilth.registry import configure

_ARRAYS, _SAID = "estimator.safetensors", "estimator.json"


class Fitted(Protocol):
    """fitted: names of the arrays that `predict` needs, besides classes_."""

    fitted: ClassVar[tuple[str, ...]]
    name: ClassVar[str]
    classes_: np.ndarray

    def get_params(self, deep: bool = True) -> dict[str, Any]: ...

    def predict_proba(self, X: np.ndarray) -> np.ndarray: ...


def save(estimator: Fitted, folder: Path) -> None:
    """Write a fitted estimator of kind 'adapt'; `load` brings it back with the same predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(getattr(estimator, name)) for name in estimator.fitted}, folder / _ARRAYS)
    said = {"method": estimator.name, "settings": estimator.get_params(), "classes": estimator.classes_.tolist()}
    (folder / _SAID).write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> Any:
    """The estimator in a folder; TilthError when there is none or it is damaged."""
    try:
        said = json.loads((folder / _SAID).read_text(encoding="utf-8"))
        estimator = configure("adapt", {said["method"]: said["settings"]}).build()
        estimator.classes_ = np.array(said["classes"])
        arrays = load_file(folder / _ARRAYS)
        for name in estimator.fitted:
            setattr(estimator, name, arrays[name])
        estimator.n_features_in_ = arrays[estimator.fitted[0]].shape[-1]
    except FileNotFoundError as error:
        raise TilthError(f"there is no estimator here: {Path(error.filename).name} is missing", where=str(folder)) from None
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise TilthError(f"the estimator is damaged: {error}", where=str(folder), hint="Adapt the model again.") from None
    return estimator
