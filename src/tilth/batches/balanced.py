"""As many positive examples as negative ones, of any labelled data: the rarer kind is drawn again and again.

Notable: an epoch holds repeats at fixed numbers, and the order of a run is drawn over those as over any other set. So which row
stands at which position is known without drawing, and traces of rows, exact forgetting, restarts and several processes work as
they always do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tilth.batches.images.segmentation import KEPT_IGNORED, SegmentationRows
from tilth.contracts import Batch, Configured, Examples, Kind, Noise, Sample, method, use
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, plain

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

_TOGETHER = 256  # masks that are looked at at once


@method("batches", "balanced", systems=[6])
class Balanced:
    """The examples of `of`, positive or negative with probability 1/2 each   (arXiv 2311.12056, oversampling)

    For training: scores are of rows as they are. positive: the network's numbers of classes (from 0) of which one pixel, or the
    label, makes an example positive; None: all but the first. An epoch is 2 k r long, r being how many there are of the rarer
    kind and k the other kind's number over r, rounded up: each of the rarer is drawn k times, each of the other kind once, and
    fewer than r of them, evenly spaced, twice. Held-out data are measured as they are. Deviation: the paper's
    code draws independently, with replacement, as many as there are rows.
    """

    def __init__(
        self,
        *,
        of: Annotated[Configured, Kind("batches")] = use("batches", "segmentation"),
        positive: list[NonNegativeInt] | None = None,
    ) -> None:
        self.of, self.positive = of, positive

    def build(self, corpus: Corpus, tokenizer: Any, context: Context) -> BalancedExamples:
        """Raises TilthError for examples without classes, and for data that hold one kind alone."""
        examples = self.of.build().build(corpus, tokenizer, context)
        if not isinstance(examples, SegmentationRows) and getattr(examples, "labels", None) is None:
            raise TilthError(
                f"'{self.of.name}' reads no classes here to balance by", where="batches.balanced.of",
                hint="Use batches with a mask or a label, such as segmentation, images, labelled, or pictures with 'label'.",
            )  # fmt: skip
        parts = {"data": corpus.fingerprint, "of": plain(self.of), "positive": self.positive, "kept": "balanced"}
        folder = context.cache(
            "kinds", parts, lambda folder: np.save(folder / "positive.npy", positives(examples, self.positive))
        )
        positive = np.load(folder / "positive.npy")
        if positive.all() or not positive.any():
            raise TilthError(
                f"all {len(positive)} examples are {'positive' if positive.all() else 'negative'}: there is nothing to balance",
                where=corpus.uri,
                hint="Add rows of the other kind, say in 'positive' which classes count, or train without 'balanced'.",
            )
        return BalancedExamples(examples, np.flatnonzero(positive), np.flatnonzero(~positive))


@dataclass(frozen=True)
class BalancedExamples:
    """examples: all of them. positive, negative: numbers among them, together each once.

    Number 2 i of this set is a positive example, 2 i + 1 a negative one.
    """

    examples: Examples
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]

    @property
    def sample(self) -> Sample:
        """What each looks like: that of `examples`."""
        return self.examples.sample  # type: ignore[attr-defined, no-any-return]

    @property
    def each(self) -> int:
        """Positive (and so negative) examples of an epoch."""
        fewer, more = sorted((len(self.positive), len(self.negative)))
        return -(-more // fewer) * fewer

    def __len__(self) -> int:
        return 2 * self.each

    def chosen(self, indices: np.ndarray) -> NDArray[np.int64]:
        """Their numbers among `examples`."""
        place, negative = np.divmod(np.asarray(indices, dtype=np.int64), 2)
        found: NDArray[np.int64] = np.where(
            negative == 1,
            self.negative[place * len(self.negative) // self.each],
            self.positive[place * len(self.positive) // self.each],
        )
        return found

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        """Those of `examples`; what is drawn twice has another position, and so other views."""
        return self.examples.batch(self.chosen(indices), noise)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Those of `examples`."""
        return self.examples.rows(self.chosen(indices))


def positives(examples: Any, classes: list[int] | None) -> NDArray[np.bool_]:
    """Which examples, of masks or of labels, have one of `classes` (None: any but the first): bool (examples,)."""
    if not isinstance(examples, SegmentationRows):
        return examples.labels > 0 if classes is None else np.isin(examples.labels, classes)  # type: ignore[no-any-return]
    wanted = np.ones(256, bool) if classes is None else np.isin(np.arange(256), classes)
    wanted[KEPT_IGNORED] = False
    if classes is None:
        wanted[0] = False
    parts = (examples.masks[start : start + _TOGETHER] for start in range(0, len(examples), _TOGETHER))
    return np.concatenate([wanted[part].reshape(len(part), -1).any(1) for part in parts])
