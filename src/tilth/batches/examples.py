"""Sets of examples made of others, and the ones that fit an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilth.contracts import Batch, Examples, Noise, use
from tilth.errors import TilthError

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus


class Chosen:
    """Some of the examples, in a given order."""

    def __init__(self, examples: Examples, indices: NDArray[np.int64]) -> None:
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        return self.examples.batch(self.indices[indices], noise)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return self.examples.rows(self.indices[indices])


def examples_for(model: Any, corpus: Corpus, context: Context) -> Examples:
    """The rows of a corpus as inputs of the size and channels that a saved encoder was built for. TilthError: it reads others."""
    inputs = getattr(model.config, "inputs", None)
    if not inputs:
        raise TilthError(
            f"a {type(model).__name__} is not an encoder of pictures", hint="Embed with a model that tilth pretrain made."
        )
    dims = 2 if "image" in corpus.columns else 3 if "plane" in corpus.columns else 2
    given = next((given for given in inputs if len(given["size"]) == dims), None)
    if given is None:
        raise TilthError(f"this encoder does not read inputs of {dims} axes", where=corpus.uri)
    size = given["size"][0] if len(set(given["size"])) == 1 else None
    name, settings = ("pictures", {"channels": given["channels"]}) if "image" in corpus.columns else ("tiles", {})
    examples: Examples = use("batches", name, size=size, **settings).build().build(corpus, None, context)
    return examples
