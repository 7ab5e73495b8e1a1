"""Texts with classes, for classification.

Notable: encoded once; a batch is a slice of padded rows, trimmed to the longest among it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from tilth.batches.text.encoding import Encoder, end_token, pad_token
from tilth.batches.text.ragged import offsets, ranges, trimmed
from tilth.contracts import Batch, Noise
from tilth.errors import TilthError, nearest
from tilth.registry import method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tilth.context import Context
    from tilth.corpus import Corpus


@method("batches", "labelled")
class Labelled:
    """Rows with `column` (text) and `label` as inputs of a classifier.

    Texts are framed as the tokeniser frames them ([CLS] ... [SEP]); where it adds nothing, the end token is put behind,
    which is what a causal model is read at. Texts longer than `length` are cut at the end; how many is said while
    building. classes: the classes in the order of their indices; left out, those of the corpus, sorted.
    """

    def __init__(
        self, *, length: Annotated[int, Ge(4)] = 256, classes: list[str] | None = None, column: str = "text", label: str = "label"
    ) -> None:
        self.length, self.classes, self.column, self.label = length, classes, column, label

    def build(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: Context) -> LabelledRows:
        for column in (self.column, self.label):
            if column not in corpus.columns:
                raise TilthError(
                    f"the corpus has no column '{column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
                )
        table = corpus.table(["id", self.column, self.label])
        names = table.column("id").to_pylist()
        texts = [text or "" for text in table.column(self.column).to_pylist()]
        labels, classes = class_indices(table.column(self.label).to_pylist(), self.classes, names)
        ids, size, cut = encode_texts(texts, tokenizer, self.length)
        if cut:
            context.progress.say(
                f"labelled: {cut} of {len(texts)} texts of {corpus.uri} are longer than {self.length} tokens and are cut"
            )
        return LabelledRows(ids, size, labels, classes, pad_token(tokenizer), cut)


@dataclass(frozen=True)
class LabelledRows:
    """input_ids: int32 (texts, longest), padded on the right. size: tokens of each text. labels: class index of each.

    batch: input_ids, attention_mask (batch, tokens), labels (batch).
    """

    input_ids: NDArray[np.int32]
    size: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: list[str]
    pad: int
    truncated: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, indices: np.ndarray, noise: Noise | None = None) -> Batch:
        size = self.size[indices]
        ids, inside = trimmed(self.input_ids[indices], size, self.pad)
        return Batch(
            tokens=int(size.sum()),
            samples=len(size),
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(inside.astype(np.int64)),
            labels=torch.from_numpy(self.labels[indices]),
        )

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return [np.array([index]) for index in np.asarray(indices).tolist()]


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Framed texts, cut to `length` inside their frame and padded on the right; their sizes; how many were cut."""
    encoder = Encoder(tokenizer)
    before, after = encoder.frame()
    if not len(before) and not len(after):
        after = np.array([end_token(tokenizer)], dtype=np.uint32)
    ids, full = encoder(texts)
    kept = np.minimum(full, length - len(before) - len(after))
    size = kept + len(before) + len(after)
    rows = np.full((len(texts), int(size.max(initial=1))), pad_token(tokenizer), dtype=np.int32)
    rows[:, : len(before)] = before
    columns = np.arange(rows.shape[1])
    inside = len(before) + kept
    rows[(columns >= len(before)) & (columns < inside[:, None])] = ids[ranges(offsets(full)[:-1], kept)]
    rows[(columns >= inside[:, None]) & (columns < size[:, None])] = np.tile(after, len(texts))
    return rows, size, int((kept < full).sum())


def class_indices(labels: Sequence[object], classes: list[str] | None, ids: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The index of each label's class, and the classes; TilthError for a row without a class or with an unknown one."""
    missing = next((row for row, label in enumerate(labels) if label is None), None)
    if missing is not None:
        raise TilthError("the label is missing", where=f"row '{ids[missing]}'", hint="Filter it away with 'where'.")
    names = [str(label) for label in labels]
    known = list(map(str, sorted(set(labels)))) if classes is None else list(classes)  # type: ignore[type-var]
    unknown = set(names) - set(known)
    if unknown:
        name = min(unknown)
        raise TilthError(
            f"'{name}' is not one of the classes", where=f"row '{ids[names.index(name)]}'", hint=nearest(name, known)
        )
    number = {name: index for index, name in enumerate(known)}
    return np.array([number[name] for name in names], dtype=np.int64), known
