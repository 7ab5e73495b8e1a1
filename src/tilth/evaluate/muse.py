"""MUSE: does the model still say it word for word, still know what it says, and give away that it was trained on it?

Notable: passages are cut at tokens but as text, so a guarded model answers through its guard; what the gold model gives is
computed once for all models compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.batches.text.encoding import Encoder
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.membership import Membership
from tilth.evaluate.questions import exhibit_answers, kept_of_gold, read_rows, template_of
from tilth.evaluate.rows import content_rows, is_asked
from tilth.registry import NonNegativeInt, PositiveInt

_STOP = re.compile(r"\n\s*\n|\n?Question:")


@method("benchmark", "muse")
class Muse(Benchmark):
    """Four of MUSE's six ways to look at an unlearned model   (arXiv 2407.06460, section 3)

    `verbmem_forget` (eq. 1): ROUGE-L F1, no stemming, between the `new_tokens` tokens that the model says after the first
    `prompt_tokens` of a passage of the forget set and the true ones. `knowmem_forget`, `knowmem_retain` (eq. 2): ROUGE-L F1 of the
    answers to questions about the sets; the latter is utility. `privleak` (eq. 5), with holdout and gold: 0 like gold, strongly
    negative under-unlearned, strongly positive over-unlearned. With gold also its `gold_` figures, and `chosen`: 1 when
    `knowmem_forget` is at most gold's, by which the paper chooses among checkpoints the first one.
    The other two ways compare several models: scalability (unlearn growing forget sets) and sustainability (unlearn one
    disjoint set after another) are this benchmark on each of them; the stage `compare` puts them into one table.

    forget, retain: passages (`text`) or questions with answers; of the latter the answer is the passage, behind its prompt in the
    model's template. forget_questions, retain_questions: what is asked about them, where the sets themselves are passages.
    shots: rows with question and answer put before each question, all of them, as the paper does; without any the question stands in
    the model's own template. A passage shorter than twice `prompt_tokens` is cut in its middle, which the paper does not need.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef | None = None,
        forget_questions: CorpusRef | None = None,
        retain_questions: CorpusRef | None = None,
        holdout: CorpusRef | None = None,
        shots: CorpusRef | None = None,
        gold: ModelRef | None = None,
        prompt_tokens: PositiveInt = 200,
        new_tokens: PositiveInt = 128,
        answer_tokens: PositiveInt = 32,
        limit: PositiveInt | None = None,
        template: Template | None = None,
        column: str = "text",
        show: NonNegativeInt = 4,
    ) -> None:
        self.forget, self.retain, self.holdout, self.shots, self.gold = forget, retain, holdout, shots, gold
        self.questions = {"forget": forget_questions or forget, "retain": retain_questions or retain}
        self.prompt_tokens, self.new_tokens, self.answer_tokens = prompt_tokens, new_tokens, answer_tokens
        self.limit, self.template, self.column, self.show = limit, template, column, show

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when neither a passage nor a question can be had from the data."""
        text_model = load(model)
        values, details = self.measured(text_model, context, self.show)
        found = {name: float(part.mean()) for name, part in values.items()}
        if self.gold is not None:
            parts = {name: value for name, value in vars(self).items() if name not in ("gold", "show", "holdout")}
            named = [self.forget, self.questions["forget"], self.questions["retain"], self.shots]
            corpora = [context.corpus(name) for name in named if name is not None]
            golden = kept_of_gold("muse", self.gold, lambda gold: self.measured(gold, context, 0)[0], parts, corpora, context)
            found |= {f"gold_{name}": float(part.mean()) for name, part in golden.items()}
            if "knowmem_forget" in found:
                found["chosen"] = float(found["knowmem_forget"] <= found["gold_knowmem_forget"])
        if self.holdout is not None and self.gold is not None:
            attack = Membership(
                forget=self.forget, holdout=self.holdout, gold=self.gold, template=self.template, limit=self.limit,
                column=self.column,
            )  # fmt: skip
            found["privleak"] = attack(model, context).metrics["privleak"]
        self.exhibit(found, context)
        return Scores(found, details)

    def measured(self, text_model: TextModel, context: Context, show: int) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
        """ROUGE-L F1 of every example by metric, and everything that was asked and said."""
        tables = [("verbmem_forget", self.verbatim(text_model, context))]
        tables += [(f"knowmem_{name}", self.known(text_model, name, context)) for name in self.questions]
        values, details = {}, {name: list[Any]() for name in ("set", "id", "question", "answer", "generated", "rouge_f1")}
        for name, table in tables:
            if table is None:
                continue
            ids, asked, right, made = table
            values[name] = metrics.rouge_l(made, right, stem=False)[1]
            for column, part in zip(details, ([name] * len(ids), ids, asked, right, made, values[name].tolist()), strict=True):
                details[column] += part
            exhibit_answers(f"MUSE: {name.replace('_', ', ')} set", asked, right, made, None, show, context)
        if not values:
            raise TilthError(
                "there is nothing to ask: the sets hold neither passages that can be cut nor questions",
                hint="Give questions about the passages under 'forget_questions' and 'retain_questions'.",
            )
        return values, details

    def verbatim(self, text_model: TextModel, context: Context) -> tuple[list[Any], list[str], list[str], list[str]] | None:
        """ids, beginnings, true continuations and the model's, of passages of at least two tokens."""
        rows = content_rows(context.corpus(self.forget), self.limit, self.column)
        if is_asked(list(rows)):
            template = template_of(text_model, self.template)
            fronts, passages = template.prompts(rows["question"]), template.answers(rows["answer"])
        else:
            fronts, passages = [""] * len(rows["id"]), [text or "" for text in rows[self.column]]
        begun, rests, kept = [], [], []
        for row, encoding in enumerate(Encoder(text_model.tokenizer).core.encode_batch(passages, add_special_tokens=False)):
            ends = [end for _, end in encoding.offsets]
            shown = min(self.prompt_tokens, len(ends) // 2)
            cut = ends[shown - 1] if shown else 0
            if not ends or not (fronts[row] or shown):
                continue
            begun.append(fronts[row] + passages[row][:cut])
            rests.append(passages[row][cut : ends[min(shown + self.new_tokens, len(ends)) - 1]].strip())
            kept.append(rows["id"][row])
        if not kept:
            return None
        return kept, begun, rests, generate(text_model, begun, self.new_tokens, progress=context.progress)

    def known(
        self, text_model: TextModel, name: str, context: Context
    ) -> tuple[list[Any], list[str], list[str], list[str]] | None:
        """ids, questions, right answers and the model's about a set; None where nothing can be asked."""
        data = self.questions[name]
        if data is None or not is_asked(context.corpus(data).columns):
            return None
        rows = read_rows(context.corpus(data), ["question", "answer"], self.limit)
        made = generate(
            text_model, self.prompts(text_model, rows["question"], context), self.answer_tokens, progress=context.progress
        )
        return rows["id"], rows["question"], rows["answer"], [cut_answer(text) for text in made]

    def prompts(self, text_model: TextModel, questions: Sequence[str], context: Context) -> list[str]:
        """Each question behind the shots, or in the model's template."""
        if self.shots is None:
            return template_of(text_model, self.template).prompts(questions)
        rows = read_rows(context.corpus(self.shots), ["question", "answer"])
        before = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in zip(rows["question"], rows["answer"], strict=True))
        return [f"{before}Question: {question}\nAnswer:" for question in questions]

    def exhibit(self, found: dict[str, float], context: Context) -> None:
        """A table, gold's figures beside the model's."""
        names = [name for name in found if not name.startswith("gold_") and name != "chosen"]
        context.exhibit(
            "table",
            "MUSE",
            columns=["metric", "value", *(["gold model"] if self.gold else [])],
            rows=[[name.replace("_", " "), found[name], *([found.get(f"gold_{name}")] if self.gold else [])] for name in names],
            note="On the forget set like the gold model is best; on the retain set higher is better.",
        )


def cut_answer(text: str) -> str:
    """A few-shot answer up to a blank line or the next question."""
    return _STOP.split(text.strip(), maxsplit=1)[0].strip()
