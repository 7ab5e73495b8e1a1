"""What tells methods that learn from unlabelled data apart: the signal they learn from and what keeps them from collapse.

Notable: the fields are the survey's of self-supervised vision transformers (arXiv 2408.17059); they stand at the class, so that a
method of one's own has a place in the catalogue too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal[
    "pretext", "contrastive", "clustering", "self-distillation", "decorrelation", "masked reconstruction", "autoregressive",
    "joint-embedding prediction", "hybrid",
]  # fmt: skip


@dataclass(frozen=True)
class Traits:
    """target: what is predicted. positives: what a view is drawn to; negatives: what it is pushed from. masking: what is hidden.
    guard: what keeps all outputs from becoming the same. teacher: needs a second network that follows the first. queue: needs
    keys of earlier batches.
    """

    family: Family
    target: str
    guard: str
    positives: str = "none"
    negatives: str = "none"
    masking: str = "none"
    teacher: bool = False
    queue: bool = False
