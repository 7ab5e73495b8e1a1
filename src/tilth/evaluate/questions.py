"""Question and answer rows as a benchmark sees them: read, checked, put into the model's own template, scored.

Notable: the template is the one the model was trained with (its `tilth.json` says which), unless a setting names another: a
benchmark in another template measures the template. What a gold model scored is kept under the content of its weights, of
the data and of the code, and computed once for all models that are compared with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilth.backbones.fingerprint import fingerprint
from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import DEFAULT, EncodedAnswers, Template, encode_answers
from tilth.batches.text.encoding import digest, end_token
from tilth.context import Context
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.evaluate.guarded import flagged, guarded_answers
from tilth.evaluate.likelihood import Sequences, TokenStatistics, context_length, merged, token_statistics
from tilth.registry import plain
from tilth.unlearn.likelihood import IGNORED
from tilth.unlearn.likelihood import answers as predicted


def template_of(text_model: TextModel, given: Template | None) -> Template:
    """The given template, or the one the model was trained with, or the default one."""
    if given is not None:
        return given
    told = text_model.about.get("template")
    return Template(**told) if told else DEFAULT


def read_rows(corpus: Corpus, columns: Sequence[str], limit: int | None = None) -> dict[str, list[Any]]:
    """Columns of the first `limit` rows (all if None), 'id' with them; TilthError when one is missing or there is no row."""
    missing = [column for column in columns if column not in corpus.columns]
    if missing:
        raise TilthError(
            f"the corpus has no column '{missing[0]}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
        )
    table = corpus.table(["id", *columns])
    rows = {name: table.column(name).to_pylist()[:limit] for name in ("id", *columns)}
    if not rows["id"]:
        raise TilthError(
            "the corpus has no rows", where=f"{corpus.uri} ({corpus.where or 'all rows'})", hint="Check its 'where'."
        )
    return rows


def score_answers(
    text_model: TextModel,
    questions: Sequence[str],
    answers: Sequence[str],
    template: Template,
    context: Context,
    *,
    moments: bool = False,
    end: bool = True,
) -> tuple[EncodedAnswers, TokenStatistics]:
    """Statistics of each answer's tokens and of the end token behind it (unless `end` is False), given its question."""
    encoded = encode_answers(questions, answers, text_model.tokenizer, template, context_length(text_model.model))
    if encoded.truncated:
        context.exhibit(
            "note",
            "Cut answers",
            text=f"{encoded.truncated} of {len(encoded)} question and answer pairs are longer than the model's context of "
            f"{context_length(text_model.model)} tokens and were cut.",
        )
    labels = encoded.labels
    if not end:
        last = np.arange(len(encoded)), encoded.size - 1
        labels[last] = np.where(encoded.input_ids[last] == end_token(text_model.tokenizer), IGNORED, labels[last])
    acts = flagged(text_model, template.prompts(questions))
    parts = []
    for rows, concerned in ((np.flatnonzero(~acts), False), (np.flatnonzero(acts), True)):
        if not len(rows):
            continue
        predict = guarded_answers(text_model, text_model.guard) if concerned and text_model.guard else predicted
        sequences = Sequences.of_rows(encoded.input_ids[rows], labels[rows], encoded.attention_mask[rows])
        found = token_statistics(text_model.model, sequences, moments=moments, progress=context.progress, predict=predict)
        parts.append((rows, found))
    return encoded, parts[0][1] if len(parts) == 1 else merged(parts)


def without_end(encoded: EncodedAnswers, statistics: TokenStatistics, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of the answers' tokens, the end token left out, and where each answer's begin: (tokens,), (answers + 1,)."""
    last = encoded.input_ids[np.arange(len(encoded)), encoded.size - 1]
    kept = np.ones(len(statistics.hits), dtype=bool)
    kept[statistics.starts[1:][last == end] - 1] = False
    return statistics.hits[kept], np.concatenate([[0], np.cumsum(kept)])[statistics.starts]


def kept_of_gold(
    name: str,
    gold: str,
    compute: Callable[[TextModel], Mapping[str, np.ndarray]],
    parts: Mapping[str, Any],
    corpora: Sequence[Corpus],
    context: Context,
) -> dict[str, np.ndarray]:
    """What `compute` gives for the gold model, from disk if it was computed before.

    parts: everything besides gold model, data and code that the answer depends on.
    """
    text_model = load(context.model(gold))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
    key = {
        "model": fingerprint(text_model.model),
        "tokenizer": digest(text_model.tokenizer),
        "about": text_model.about.get("template"),
        "data": [corpus.fingerprint for corpus in corpora],
        "parts": plain(parts),
        "code": code,
    }

    def make(folder: Path) -> None:
        for what, values in compute(text_model).items():
            np.save(folder / f"{what}.npy", values)

    folder = context.cache(f"gold-{name}", key, make)
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def exhibit_answers(
    title: str,
    questions: Sequence[str],
    right: Sequence[str],
    made: Sequence[str],
    before: Callable[[list[str]], list[str]] | None,
    show: int,
    context: Context,
) -> None:
    """`show` questions, evenly spread, with the right answer and the model's; before: answers of an earlier model to show too."""
    if not show:
        return
    rows = np.linspace(0, len(made) - 1, min(show, len(made))).astype(int).tolist()
    cells = {"question": [questions[row] for row in rows], "right answer": [right[row] for row in rows]}
    if before is not None:
        cells["before"] = before(cells["question"])
    cells["now" if before is not None else "the model's answer"] = [made[row] for row in rows]
    context.exhibit("examples", title, columns=list(cells), rows=[list(row) for row in zip(*cells.values(), strict=True)])
