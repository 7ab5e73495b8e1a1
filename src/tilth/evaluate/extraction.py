"""What can be got out of a model word for word: is it likely, is it memorised, how much of a beginning brings out the rest?

Notable: extraction likelihood needs a generation per position, so it is taken over evenly spread positions of some rows, all
of them decoded together; it is a property of the weights, so no guard acts on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.batches.text.encoding import Encoder, end_token
from tilth.batches.text.ragged import offsets
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, Scores, method
from tilth.evaluate import metrics
from tilth.evaluate.generate import continue_ids
from tilth.evaluate.likelihood import context_length
from tilth.evaluate.questions import template_of
from tilth.evaluate.rows import content_rows, is_asked, score_rows
from tilth.registry import NonNegativeInt, PositiveInt

_MEANS = ("probability", "exact_memorisation", "extraction_strength", "extraction_likelihood")


@method("benchmark", "extraction")
class Extraction(Benchmark):
    """Per set `<set>_probability`, `<set>_exact_memorisation`, `<set>_extraction_strength` and `<set>_extraction_likelihood`.

    probability: mean P^(1/n). exact_memorisation: share of tokens whose teacher-forced argmax is right (MA, arXiv 2210.01504,
    eq. 2). extraction_strength: 1 - k/n, k tokens of a beginning being enough for all argmax predictions after it to be right
    (arXiv 2202.07646). extraction_likelihood (arXiv 2210.01504, eq. 3), for a text of T tokens:
    EL_m = 1/(T - m) sum over t = 1 ... T - m of the share of m-grams of the greedy continuation of x_<t that occur in x_>=t.
    With holdout, `below_unseen`: 1 when memorisation and extraction likelihood of the forget set are at most those of text never
    seen, the stop rule of arXiv 2210.01504, section 3.2.

    Rows with question and answer: the answer's tokens, the question being given; rows with `column`: the whole text, to the
    model's context. positions: at so many t, evenly spread, instead of all; ask: on so many rows (0: no extraction likelihood); never of the
    retain set, which nobody wants to hide.
    Texts of m tokens or fewer have no extraction likelihood and are left out of its mean.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef | None = None,
        holdout: CorpusRef | None = None,
        ngram: PositiveInt = 10,
        positions: PositiveInt = 8,
        ask: NonNegativeInt = 64,
        limit: PositiveInt | None = None,
        template: Template | None = None,
        column: str = "text",
    ) -> None:
        self.sets = {"forget": forget, "retain": retain, "holdout": holdout}
        self.ngram, self.positions, self.ask, self.limit = ngram, positions, ask, limit
        self.template, self.column = template, column

    def __call__(self, model: Any, context: Context) -> Scores:
        """Raises TilthError when a set has neither questions with answers nor the text column."""
        text_model = load(model)
        found: dict[str, float] = {}
        details: dict[str, list[Any]] = {name: [] for name in ("set", "id", *_MEANS)}
        for name, data in self.sets.items():
            if data is None:
                continue
            rows = content_rows(context.corpus(data), self.limit, self.column)
            scored = score_rows(text_model, rows, self.template, context, column=self.column)
            values = {
                "probability": metrics.answer_probability(scored.statistics.average),
                "exact_memorisation": metrics.exact_memorisation(scored.hits, scored.starts),
                "extraction_strength": metrics.extraction_strength(scored.hits, scored.starts),
                "extraction_likelihood": self.likelihood(text_model, rows, 0 if name == "retain" else self.ask, context),
            }
            details["set"] += [name] * len(rows["id"])
            details["id"] += rows["id"]
            for what, per_row in values.items():
                details[what] += [None if np.isnan(value) else float(value) for value in per_row]
                if not np.isnan(per_row).all():
                    found[f"{name}_{what}"] = float(np.nanmean(per_row))
        self.stop_rule(found)
        self.exhibit(found, context)
        return Scores(found, details)

    def likelihood(self, text_model: TextModel, rows: dict[str, list[Any]], ask: int, context: Context) -> np.ndarray:
        """EL_m of `ask` rows, nan where it was not asked for or the row is too short: (rows,)."""
        values = np.full(len(rows["id"]), np.nan)
        asked = np.unique(np.linspace(0, len(values) - 1, min(ask, len(values))).astype(int)).tolist()
        before, texts = self.encoded(text_model, rows, asked)
        prefixes, rests, owners = [], [], []
        for row, front, text in zip(asked, before, texts, strict=True):
            last = len(text) - self.ngram  # T - m
            if last < 1:
                continue
            for t in np.unique(np.linspace(1, last, min(self.positions, last)).round().astype(int)).tolist():
                prefixes.append(np.concatenate([front, text[: t - 1]]))
                rests.append(text[t - 1 :])
                owners.append(row)
        if not prefixes:
            return values
        longest = max(map(len, rests))
        starts = offsets(np.array([len(prefix) for prefix in prefixes]))
        made = continue_ids(text_model, np.concatenate(prefixes), starts, longest, progress=context.progress)
        overlap = np.array(
            [metrics.ngram_overlap(ids[: len(rest)], rest.tolist(), self.ngram) for ids, rest in zip(made, rests, strict=True)]
        )
        counted = np.bincount(owners, minlength=len(values))
        sums = np.bincount(owners, weights=overlap, minlength=len(values))
        values[counted > 0] = sums[counted > 0] / counted[counted > 0]
        return values

    def encoded(
        self, text_model: TextModel, rows: dict[str, list[Any]], asked: list[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids of what is given (the question; the end token before a text) and of what could be extracted, of the rows asked."""
        encoder, length = Encoder(text_model.tokenizer), context_length(text_model.model)
        head, _ = encoder.frame()
        end = np.array([end_token(text_model.tokenizer)], dtype=np.int64)

        def split(texts: list[str]) -> list[np.ndarray]:
            ids, lengths = encoder(texts)
            return np.split(ids.astype(np.int64), offsets(lengths)[1:-1]) if texts else []

        if is_asked(list(rows)):
            template = template_of(text_model, self.template)
            fronts = [
                np.concatenate([head, ids]).astype(np.int64)
                for ids in split(template.prompts([rows["question"][row] for row in asked]))
            ]
            texts = split(template.answers([rows["answer"][row] for row in asked]))
        else:
            fronts = [end for _ in asked]
            texts = split([rows[self.column][row] or "" for row in asked])
        return fronts, [text[: max(0, length - len(front))] for front, text in zip(fronts, texts, strict=True)]

    def stop_rule(self, found: dict[str, float]) -> None:
        """Adds `below_unseen` where the holdout set says what text never seen gives."""
        pairs = [
            (found.get(f"forget_{what}"), found.get(f"holdout_{what}"))
            for what in ("exact_memorisation", "extraction_likelihood")
        ]
        known = [(forget, holdout) for forget, holdout in pairs if forget is not None and holdout is not None]
        if known:
            found["below_unseen"] = float(all(forget <= holdout for forget, holdout in known))

    def exhibit(self, found: dict[str, float], context: Context) -> None:
        """One row per set."""
        names = [name for name, data in self.sets.items() if data is not None]
        context.exhibit(
            "table",
            "What can be extracted",
            columns=["set", *(what.replace("_", " ") for what in _MEANS)],
            rows=[[name, *(found.get(f"{name}_{what}") for what in _MEANS)] for name in names],
            note=f"Extraction likelihood of {self.ngram}-grams, at {self.positions} positions of {self.ask} rows.",
        )
