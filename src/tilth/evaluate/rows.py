"""Rows of either kind, questions with answers or plain texts, as the attacks see them: read and scored in one way.

Notable: an answer is scored given its question, with its end; a text is scored whole, its first token predicted from the end
token, in overlapping windows where it is longer than the model's context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilth.backbones.folder import TextModel
from tilth.batches.text.answers import Template
from tilth.batches.text.encoding import Encoder, end_token
from tilth.batches.text.ragged import offsets
from tilth.context import Context
from tilth.corpus import Corpus
from tilth.evaluate.likelihood import TokenStatistics, context_length, token_statistics
from tilth.evaluate.perplexity import cut
from tilth.evaluate.questions import read_rows, score_answers, template_of, without_end


@dataclass(frozen=True)
class ScoredRows:
    """statistics: of all scored tokens. hits (tokens,), starts (rows + 1,): of the content's tokens alone, without an end token."""

    statistics: TokenStatistics
    hits: np.ndarray
    starts: np.ndarray


def is_asked(columns: Sequence[str]) -> bool:
    """Whether rows with these columns are questions with answers."""
    return "question" in columns and "answer" in columns


def content_rows(corpus: Corpus, limit: int | None = None, column: str = "text") -> dict[str, list[Any]]:
    """'id' with questions and answers where the corpus has them, else with its texts."""
    return read_rows(corpus, ["question", "answer"] if is_asked(corpus.columns) else [column], limit)


def score_rows(
    text_model: TextModel,
    rows: dict[str, list[Any]],
    template: Template | None,
    context: Context,
    *,
    moments: bool = False,
    column: str = "text",
) -> ScoredRows:
    """How likely the model finds what each row says; through its guard where it has one and the rows are questions."""
    if is_asked(list(rows)):
        told = template_of(text_model, template)
        encoded, found = score_answers(text_model, rows["question"], rows["answer"], told, context, moments=moments)
        return ScoredRows(found, *without_end(encoded, found, end_token(text_model.tokenizer)))
    ids, lengths = Encoder(text_model.tokenizer)([text or "" for text in rows[column]])
    length = context_length(text_model.model)
    windows = cut(ids.astype(np.int64), offsets(lengths), end_token(text_model.tokenizer), length, max(1, length // 2))
    found = token_statistics(text_model.model, windows.sequences, moments=moments, progress=context.progress)
    order = np.argsort(windows.tokens, kind="stable")
    starts = offsets(lengths)
    moved = [values[order] if values is not None else None for values in (found.mean, found.variance)]
    ordered = TokenStatistics(found.log_probability[order], found.hits[order], starts, *moved)
    return ScoredRows(ordered, ordered.hits, starts)
