"""ORT: is what was forgotten in one form of asking also forgotten in the others?

Notable: a model that forgot sentences and not facts gives itself away by the gap between the form it was trained on and the
rest, so the gap is a metric; neighbours are asked in the same forms, those who share the subject's last name also apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import EncodedAnswers, Template
from tilth.batches.text.encoding import end_token
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.corpus import Corpus
from tilth.evaluate import metrics
from tilth.evaluate.forms import Asked, derived, given
from tilth.evaluate.generate import generate
from tilth.evaluate.likelihood import TokenStatistics
from tilth.evaluate.questions import exhibit_answers, kept_of_gold, read_rows, score_answers, template_of
from tilth.registry import NonNegativeInt, PositiveInt

_OPTIONAL = ("form", "paraphrased_question", "paraphrased_answer", "perturbed_answer")


@method("benchmark", "ort", systems=[53])
class ORT(Benchmark):
    """Answer probability of the same facts in several forms   (arXiv 2506.07795, section 3)

    forget: rows with question and answer; a column 'form' says each row's form, without it the forms are made by rule (see
    `forms.derived`). neighbours: the same of those who shall stay. subject: the column that names whom a row is about; a mean
    is over items, then over subjects; without that column all rows are one subject's.
    trained: forms the method was trained on; the others are the untrained ones.

    Per form: `forget_<form>`, `neighbours_<form>`: P(a|q)^(1/n), n the answer's tokens without its end; `..._accuracy`: of
    teacher-forced tokens. `forget_probability`, `neighbours_probability`: mean over forms; `forget_highest`: of all forms.
    `namesakes_probability`: of neighbours whose name ends in the same word as a forgotten subject's.
    `rouge` (ROUGE-L recall) and `fluency` of greedy answers to `generated` questions of the forget set (0: none).
    With before: `drop_<form>`, what the forget probability lost; `form_gap` = drop of the trained forms minus the mean drop of
    the others, `form_gap_highest`: minus the least of them; `neighbours_loss`, mean over forms, and `neighbours_loss_highest`.
    Choices among n options have a chance level of 1/n or more, not 0.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        neighbours: CorpusRef | None = None,
        before: ModelRef | None = None,
        trained: list[str] = ["question"],  # noqa: B006
        subject: str = "subject",
        template: Template | None = None,
        limit: PositiveInt | None = None,
        generated: NonNegativeInt = 64,
        max_new_tokens: PositiveInt = 64,
        show: NonNegativeInt = 6,
    ) -> None:
        self.sets = {"forget": forget, **({"neighbours": neighbours} if neighbours else {})}
        self.before, self.trained, self.subject, self.template = before, list(trained), subject, template
        self.limit, self.generated, self.max_new_tokens, self.show = limit, generated, max_new_tokens, show

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when a set lacks questions or answers."""
        text_model = load(model)
        rows = {name: self.rows(context.corpus(data)) for name, data in self.sets.items()}
        forms = {name: given(part) if "form" in part else derived(part) for name, part in rows.items()}
        scored = self.scores(text_model, forms, context)
        found = self.summary(scored, forms, rows)
        before = None
        if self.before is not None:
            parts = {"template": self.template, "limit": self.limit}
            corpora = [context.corpus(data) for data in self.sets.values()]
            kept = kept_of_gold("ort", self.before, lambda earlier: self.scores(earlier, forms, context), parts, corpora, context)
            before = self.summary(kept, forms, rows)
            found |= self.changes(found, before, list(forms["forget"]))
        if self.generated:
            found |= self.said(text_model, forms["forget"], context)
        self.exhibit(found, before, forms, context)
        details: dict[str, list[Any]] = {name: [] for name in ("set", "form", "id", "subject", "probability")}
        for name, part in forms.items():
            for form, asked in part.items():
                details["set"] += [name] * len(asked.rows)
                details["form"] += [form] * len(asked.rows)
                details["id"] += [rows[name]["id"][row] for row in asked.rows]
                details["subject"] += [rows[name]["subject"][row] for row in asked.rows]
                details["probability"] += scored[f"{name}.{form}.probability"].tolist()
        return Scores(found, details)

    def rows(self, corpus: Corpus) -> dict[str, list[Any]]:
        """Rows with those of the optional columns there are, and 'subject'."""
        columns = [*("question", "answer"), *(name for name in _OPTIONAL if name in corpus.columns)]
        named = self.subject in corpus.columns
        rows = read_rows(corpus, [*columns, *([self.subject] if named else [])], self.limit)
        return rows | {"subject": rows[self.subject] if named else [""] * len(rows["id"])}

    def scores(self, text_model: TextModel, forms: dict[str, dict[str, Asked]], context: Context) -> dict[str, np.ndarray]:
        """'set.form.probability' and 'set.form.accuracy' of every item: (items,)."""
        template, end = template_of(text_model, self.template), end_token(text_model.tokenizer)
        found = {}
        for name, part in forms.items():
            for form, asked in part.items():
                encoded, statistics = score_answers(text_model, asked.questions, asked.answers, template, context)
                found[f"{name}.{form}.probability"] = metrics.answer_probability(average_without_end(encoded, statistics, end))
                right = np.add.reduceat(statistics.hits.astype(np.float64), statistics.starts[:-1])
                found[f"{name}.{form}.accuracy"] = right / statistics.count
        return found

    def summary(
        self, scored: dict[str, np.ndarray], forms: dict[str, dict[str, Asked]], rows: dict[str, dict[str, list[Any]]]
    ) -> dict[str, float]:
        """Means over items and then over subjects."""
        found: dict[str, float] = {}
        forgotten = {_last_word(name) for name in rows["forget"]["subject"]} - {""}
        namesakes = []
        for name, part in forms.items():
            for form, asked in part.items():
                subjects = [rows[name]["subject"][row] for row in asked.rows]
                values = scored[f"{name}.{form}.probability"]
                found[f"{name}_{form}"] = over_subjects(values, subjects)
                found[f"{name}_{form}_accuracy"] = over_subjects(scored[f"{name}.{form}.accuracy"], subjects)
                if name == "neighbours":
                    shared = np.array([_last_word(subject) in forgotten for subject in subjects])
                    namesakes += values[shared].tolist()
            found[f"{name}_probability"] = float(np.mean([found[f"{name}_{form}"] for form in part]))
        found["forget_highest"] = max(found[f"forget_{form}"] for form in forms["forget"])
        if namesakes:
            found["namesakes_probability"] = float(np.mean(namesakes))
        return found

    def changes(self, now: dict[str, float], before: dict[str, float], forms: Sequence[str]) -> dict[str, float]:
        """What became less, by form and between forms."""
        found = {f"drop_{form}": before[f"forget_{form}"] - now[f"forget_{form}"] for form in forms}
        trained = [found[f"drop_{form}"] for form in forms if form in self.trained]
        others = [found[f"drop_{form}"] for form in forms if form not in self.trained]
        if trained and others:
            found["form_gap"] = float(np.mean(trained) - np.mean(others))
            found["form_gap_highest"] = float(np.mean(trained) - min(others))
        if "neighbours" in self.sets:
            lost = [
                before[name] - now[name]
                for name in before
                if name.startswith("neighbours_") and not name.endswith(("_accuracy", "_probability"))
            ]
            found["neighbours_loss"], found["neighbours_loss_highest"] = float(np.mean(lost)), max(lost)
        if "namesakes_probability" in before:
            found["namesakes_loss"] = before["namesakes_probability"] - now["namesakes_probability"]
        return found

    def said(self, text_model: TextModel, forms: dict[str, Asked], context: Context) -> dict[str, float]:
        """How the model answers, in words: closeness to the right answer, and fluency."""
        questions = [question for asked in forms.values() for question in asked.questions][: self.generated]
        answers = [answer for asked in forms.values() for answer in asked.answers][: self.generated]
        prompts = template_of(text_model, self.template).prompts(questions)
        made = [text.strip() for text in generate(text_model, prompts, self.max_new_tokens, progress=context.progress)]
        exhibit_answers("Answers about what was to be forgotten", questions, answers, made, None, self.show, context)
        return {
            "rouge": float(metrics.rouge_l(made, answers)[0].mean()),
            "fluency": float(np.mean([fluency(text) for text in made])),
        }

    def exhibit(
        self,
        found: dict[str, float],
        before: dict[str, float] | None,
        forms: dict[str, dict[str, Asked]],
        context: Context,
    ) -> None:
        """Probability by form, of the model before too where there is one."""
        columns = ["form", *(f"{name}{when}" for name in forms for when in ((" before", " now") if before else ("",)))]
        lines: list[list[Any]] = []
        for form in forms["forget"]:
            cells = [source.get(f"{name}_{form}") for name in forms for source in ([before, found] if before else [found])]
            lines.append([form.replace("_", " ") + (" (trained on)" if form in self.trained else ""), *cells])
        note = "Probability of the right answer, per token. Forgotten is low in every form, not only in the one trained on."
        context.exhibit("table", "The same facts in several forms", columns=columns, rows=lines, note=note)


def average_without_end(encoded: EncodedAnswers, statistics: TokenStatistics, end: int) -> np.ndarray:
    """Nats per token of each answer, its end token left out: (answers,)."""
    last = statistics.starts[1:] - 1
    ended = encoded.input_ids[np.arange(len(encoded)), encoded.size - 1] == end
    nll = statistics.nll + np.where(ended, statistics.log_probability[last], 0.0)
    return nll / np.maximum(statistics.count - ended, 1)


def over_subjects(values: np.ndarray, subjects: Sequence[str]) -> float:
    """Mean over the items of each subject, then over subjects."""
    _, number = np.unique(np.array(subjects), return_inverse=True)
    return float((np.bincount(number, weights=values) / np.bincount(number)).mean())


def fluency(text: str) -> float:
    """Mean of 2/3 of the entropy of its 2-grams and 4/3 of that of its 3-grams, in bits; low where it repeats itself.

    As in ROME's generation entropy (arXiv 2202.05262, appendix), which ORT uses; 0 for a text of one word.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return (2 / 3 * ngram_entropy(words, 2) + 4 / 3 * ngram_entropy(words, 3)) / 2


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy of the distribution of n-grams, in bits."""
    if len(words) < n:
        return 0.0
    _, count = np.unique([" ".join(words[at : at + n]) for at in range(len(words) - n + 1)], return_counts=True)
    share = count / count.sum()
    return float(-(share * np.log2(share)).sum())


def _last_word(name: str) -> str:
    return name.split()[-1] if name and name.split() else ""
