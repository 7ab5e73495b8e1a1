"""Sets of examples made of others, and how rows are read for an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilth.contracts import Batch, Configured, Examples, Noise, use
from tilth.errors import TilthError

if TYPE_CHECKING:
    from tilth.corpus import Corpus


class Chosen:
    """Some of the examples, in a given order."""

    def __init__(self, examples: Examples, indices: NDArray[np.int64]) -> None:
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        """Those of the chosen examples."""
        return self.examples.batch(self.indices[indices], noise)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Those of the chosen examples."""
        return self.examples.rows(self.indices[indices])


def reading(model: Any, corpus: Corpus) -> Configured:
    """The batches that make rows of a corpus inputs of the size and channels a saved encoder was built for. TilthError: it reads others."""
    inputs = getattr(model.config, "inputs", None) or getattr(model.config, "encoder", {}).get("inputs")
    if not inputs:
        raise TilthError(
            f"a {type(model).__name__} is not an encoder of pictures",
            hint="Use a model that tilth pretrain made, or say under 'batches' how rows are read.",
        )
    dims = 2 if "image" in corpus.columns else 3 if "plane" in corpus.columns else 2
    given = next((given for given in inputs if len(given["size"]) == dims), None)
    if given is None:
        raise TilthError(f"this encoder does not read inputs of {dims} axes", where=corpus.uri)
    size = given["size"][0] if len(set(given["size"])) == 1 else None
    name, settings = ("pictures", {"channels": given["channels"]}) if "image" in corpus.columns else ("tiles", {})
    return use("batches", name, size=size, **settings)
