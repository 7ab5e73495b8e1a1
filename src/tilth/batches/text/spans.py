"""Documents of which only marked parts are learnt: the loss is where the spans are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from tilth.batches.text.encoding import Encoder, end_token, pad_token
from tilth.batches.text.ragged import trimmed
from tilth.contracts import Batch, Examples, Noise
from tilth.errors import TilthError
from tilth.registry import method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tilth.context import Context
    from tilth.corpus import Corpus


@method("batches", "spans")
class Spans:
    """One document a row, cut to `length` tokens, with its end token; labels only on tokens that touch a span.

    spans: a column of lists of {start, end}, in characters. Without that column, and for documents whose list is empty, all
    tokens are learnt.
    """

    def __init__(self, *, length: Annotated[int, Ge(2)] = 256, column: str = "text", spans: str = "spans") -> None:
        self.length, self.column, self.spans = length, column, spans

    def build(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: Context) -> Examples:
        if self.column not in corpus.columns:
            raise TilthError(
                f"the corpus has no column '{self.column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
            )
        marked = self.spans in corpus.columns
        table = corpus.table([self.column, *([self.spans] if marked else [])])
        texts = [text or "" for text in table.column(0).to_pylist()]
        marks = table.column(1).to_pylist() if marked else [None] * len(texts)
        encodings = Encoder(tokenizer).core.encode_batch(texts, add_special_tokens=False)
        end = end_token(tokenizer)
        size = np.array([min(len(encoding) + 1, self.length) for encoding in encodings])
        ids = np.full((len(texts), int(size.max())), pad_token(tokenizer), dtype=np.int32)
        learnt = np.zeros(ids.shape, dtype=bool)
        for row, (encoding, spans) in enumerate(zip(encodings, marks, strict=True)):
            ids[row, : size[row]] = [*encoding.ids, end][: size[row]]
            learnt[row, : size[row]] = _touched(encoding.offsets, spans)[: size[row]]
        return Marked(ids, learnt, size, pad_token(tokenizer))


class Marked:
    """input_ids, labels, attention_mask (batch, tokens), padded on the right; example i is row i of the corpus."""

    def __init__(self, ids: NDArray[np.int32], learnt: NDArray[np.bool_], size: NDArray[np.int64], pad: int) -> None:
        self.ids, self.learnt, self.size, self.pad = ids, learnt, size, pad

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: np.ndarray, noise: Noise | None = None) -> Batch:
        size = self.size[indices]
        ids, inside = trimmed(self.ids[indices], size, self.pad)
        learnt = np.zeros(ids.shape, dtype=bool)
        used = min(ids.shape[1], self.learnt.shape[1])
        learnt[:, :used] = self.learnt[indices][:, :used]
        return Batch(
            tokens=int(size.sum()),
            samples=len(size),
            input_ids=torch.from_numpy(ids),
            labels=torch.from_numpy(np.where(learnt & inside, ids, -100)),
            attention_mask=torch.from_numpy(inside.astype(np.int64)),
        )

    def rows(self, indices: np.ndarray) -> list[NDArray[np.int64]]:
        return [np.array([index]) for index in np.asarray(indices).tolist()]


def _touched(offsets: list[tuple[int, int]], spans: list[dict[str, int]] | None) -> NDArray[np.bool_]:
    """Which tokens, the end token behind them included, share a character with a span; all of them without spans."""
    if not spans:
        return np.ones(len(offsets) + 1, dtype=bool)
    begin, end = np.array(offsets).reshape(-1, 2).T
    touched = np.zeros(len(offsets) + 1, dtype=bool)
    for span in spans:
        touched[:-1] |= (begin < span["end"]) & (end > span["start"])
    return touched
