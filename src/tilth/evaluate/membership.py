"""Membership inference: can one tell from the model's scores that the forget set was trained on?

Notable: one orientation throughout (lower scores and AUCs above 0.5 say member), written beside the numbers; the raw scores
are kept, so that any other orientation can be had from them.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.corpus import Corpus
from tilth.evaluate import metrics
from tilth.evaluate.likelihood import TokenStatistics
from tilth.evaluate.questions import kept_of_gold
from tilth.evaluate.rows import content_rows, score_rows
from tilth.registry import Fraction, PositiveInt


@method("benchmark", "membership")
class Membership(Benchmark):
    """AUCs of telling forget from holdout: `<score>_auc` for the scores loss, zlib, min_k, min_k_plus_plus and reference.

    loss: nats per token; zlib: that over the bytes of the zlib-compressed text; min_k (arXiv 2310.16789) and min_k_plus_plus
    (arXiv 2404.02936): minus the mean of the `fraction` lowest (standardised) token log-probabilities; reference: loss minus
    the reference model's. An AUC of 1: every forget example looks more like a member than any holdout one; 0.5: no
    difference. With gold, its AUCs as `gold_<score>_auc`, and `privleak` (arXiv 2407.06460, eq. 5), from min_k at
    `privleak_fraction`: 0 like gold, strongly negative under-unlearned, strongly positive over-unlearned.

    forget: members. holdout: rows of the same distribution that were never trained on. Rows with question and answer are scored on
    the answer and its end, given the question; rows with `column` on the whole text.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        holdout: CorpusRef,
        gold: ModelRef | None = None,
        reference: ModelRef | None = None,
        fraction: Fraction = 0.2,
        privleak_fraction: Fraction = 0.4,
        template: Template | None = None,
        limit: PositiveInt | None = None,
        column: str = "text",
    ) -> None:
        self.sets, self.gold, self.reference = {"forget": forget, "holdout": holdout}, gold, reference
        self.fraction, self.privleak_fraction = fraction, privleak_fraction
        self.template, self.limit, self.column = template, limit, column

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when a set has neither questions with answers nor the text column."""
        corpora = [context.corpus(data) for data in self.sets.values()]
        text_model = load(model)
        read = [self.rows(corpus) for corpus in corpora]
        scores = self.scores(text_model, read, context)
        if self.reference is not None:
            scores["reference"] = scores["loss"] - self.scores(load(context.model(self.reference)), read, context)["loss"]
        members = len(read[0]["id"])
        found = self.aucs(scores, members)
        if self.gold is not None:
            parts = {name: value for name, value in vars(self).items() if name not in ("gold", "reference", "sets")}
            golden = self.aucs(
                kept_of_gold("membership", self.gold, lambda gold: self.scores(gold, read, context), parts, corpora, context),
                members,
            )
            found["privleak"] = metrics.privleak(found["privleak_min_k_auc"], golden["privleak_min_k_auc"])
            found |= {f"gold_{name}": value for name, value in golden.items()}
        self.exhibit(found, context)
        details: dict[str, list[Any]] = {name: values.tolist() for name, values in scores.items()}
        sets = [name for name, rows in zip(self.sets, read, strict=True) for _ in rows["id"]]
        return Scores(found, {"set": sets, "id": [*read[0]["id"], *read[1]["id"]], **details})

    def rows(self, corpus: Corpus) -> dict[str, list[Any]]:
        """Questions and answers where the corpus has them, else texts."""
        return content_rows(corpus, self.limit, self.column)

    def scores(self, text_model: TextModel, read: list[dict[str, list[Any]]], context: Context) -> dict[str, np.ndarray]:
        """Score of every example by name, forget first, then holdout; lower is more like a member."""
        found = [self.statistics(text_model, rows, context) for rows in read]
        texts = [text for rows in read for text in rows["answer" if "answer" in rows else self.column]]
        loss = np.concatenate([part.average for part in found])
        starts = np.concatenate([found[0].starts, found[1].starts[1:] + found[0].starts[-1]])
        log_probability, mean, variance = (
            np.concatenate([getattr(part, name) for part in found]) for name in ("log_probability", "mean", "variance")
        )
        standardised = metrics.standardised(log_probability, mean, variance)
        return {
            "loss": loss,
            "zlib": loss / np.array([len(zlib.compress(text.encode())) for text in texts]),
            "min_k": metrics.min_k(log_probability, starts, self.fraction),
            "min_k_plus_plus": metrics.min_k(standardised, starts, self.fraction),
            "privleak_min_k": metrics.min_k(log_probability, starts, self.privleak_fraction),
        }

    def statistics(self, text_model: TextModel, rows: dict[str, list[Any]], context: Context) -> TokenStatistics:
        """Of the answers, or of whole texts, whose first token is predicted from the end token."""
        return score_rows(text_model, rows, self.template, context, moments=True, column=self.column).statistics

    def aucs(self, scores: dict[str, np.ndarray], members: int) -> dict[str, float]:
        """Of each score; the first `members` values are the forget set's."""
        return {f"{name}_auc": metrics.member_auc(values[:members], values[members:]) for name, values in scores.items()}

    def exhibit(self, found: dict[str, float], context: Context) -> None:
        """A table of the AUCs, gold's beside them."""
        names = [name for name in found if name.endswith("_auc") and not name.startswith("gold_")]
        context.exhibit(
            "table",
            "Membership inference",
            columns=["score", "AUC", *(["AUC of the gold model"] if self.gold else [])],
            rows=[
                [name.removesuffix("_auc").replace("_", " "), found[name], *([found.get(f"gold_{name}")] if self.gold else [])]
                for name in names
            ],
            note="1: the forget set stands out as trained on; 0.5: it cannot be told from the holdout set. "
            + (f"PrivLeak: {found['privleak']:.1f} (0: like the gold model)." if self.gold else ""),
        )
