"""Pictures and volumes for one encoder: every example is a few pictures and one volume, so every step trains on both.

Notable: kinds of input do not alternate from step to step. A step that holds both at fixed shares has, for half the learning rate, the
gradient of an alternation's two steps together, and no process ever meets a kind, or weights, that another one does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tilth.contracts import Batch, Configured, CorpusRef, Examples, Kind, Noise, Sample, method, use
from tilth.registry import PositiveInt

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus


@method("batches", "mixed", systems=[82])
class Mixed:
    """The stage's data as pictures, and `volumes`, of which every example holds one.

    per_volume: pictures to a volume; tokens of a volume over those of a picture share the work equally (Uni4Eye, arXiv 2203.04614,
    has 8, by epochs that alternate). pictures, of_volumes: how the rows of either set become pixels.
    """

    def __init__(
        self,
        *,
        volumes: CorpusRef,
        per_volume: PositiveInt = 8,
        pictures: Annotated[Configured, Kind("batches")] = use("batches", "pictures"),
        of_volumes: Annotated[Configured, Kind("batches")] = use("batches", "tiles"),
    ) -> None:
        self.volumes, self.per_volume, self.pictures, self.of_volumes = volumes, per_volume, pictures, of_volumes

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> MixedExamples:
        pictures = self.pictures.build().build(corpus, tokenizer, context)
        volumes = self.of_volumes.build().build(context.corpus(self.volumes), tokenizer, context)
        return MixedExamples(pictures, volumes, self.per_volume)


@dataclass(frozen=True)
class MixedExamples:
    """A batch holds `pictures` (a batch of `per_volume` pictures for each example, example by example) and `volumes` (one for each).

    An epoch shows every picture once, but for a few of the first ones that fill the last example. Which volume comes with an
    example depends on the seed and the position in the run alone: uniform with replacement.
    """

    pictures: Examples
    volumes: Examples
    per_volume: int

    @property
    def sample(self) -> tuple[Sample, Sample]:
        """What the pictures look like and what the volumes do."""
        return self.pictures.sample, self.volumes.sample  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return -(-len(self.pictures) // self.per_volume)

    def pictured(self, indices: np.ndarray) -> NDArray[np.int64]:
        """Numbers of the pictures of each example, (examples, per_volume), far from each other in the set."""
        return (np.asarray(indices)[:, None] + len(self) * np.arange(self.per_volume)) % len(self.pictures)

    def drawn(self, noise: Noise) -> NDArray[np.int64]:
        """Numbers of the volumes at the positions of `noise`."""
        return (noise.uniform("volume") * len(self.volumes)).astype(np.int64)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        # Every picture has a position, and so a key, of its own.
        positions = noise.positions[:, None] * np.uint64(self.per_volume) + np.arange(self.per_volume, dtype=np.uint64)
        pictures = self.pictures.batch(self.pictured(indices).ravel(), Noise(noise.seed, positions.ravel()))
        volumes = self.volumes.batch(self.drawn(noise), noise)
        tokens, samples = pictures.tokens + volumes.tokens, pictures.samples + volumes.samples
        return Batch(tokens=tokens, samples=samples, pictures=pictures, volumes=volumes)

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        """Rows of the pictures' corpus. Those of the volumes' hang on the position: `volumes.rows(drawn(noise))`."""
        return [np.unique(np.concatenate(self.pictures.rows(numbers))) for numbers in self.pictured(indices)]
