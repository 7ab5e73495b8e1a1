"""Does a model still say what it should not, and at what price? Names, titles and numbers of the answers to be forgotten.

Notable: asked in the form that was forgotten and in another one; what a question itself says is no leak; how natural the answers
are is judged by the model as it was before.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.batches.text.encoding import Encoder
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.guarded import bare, flagged
from tilth.evaluate.questions import exhibit_answers, read_rows, score_answers, template_of
from tilth.registry import Fraction, NonNegativeInt, PositiveInt
from tilth.unlearn.forbidden import frequent, phrases_of, pieces, words


@method("benchmark", "leaks", systems=[76])
class Leaks(Benchmark):
    """forget, retain: rows with question, answer and `paraphrase`, another form of the question.

    `entity_recall`, `paraphrase_entity_recall`: mean share of the phrases of the right answer (see `forbidden.phrases_of`; words in
    more than `common` of the retain answers and what the question says are none) that the model's greedy answer says, over the
    questions that have such phrases. `flagged_entity_recall`: the same over the questions, in either form, that the model's guard acts
    on; `forget_flagged`, `paraphrase_flagged`, `retain_flagged`: how many those are, as shares (without a guard, absent).
    `retain_rouge`: ROUGE-L recall of the retain questions' answers, `retain_rouge_change`: how far that is, up or down, from what
    `before` gives. Of the answers to forget questions: `repeated_bigrams`, share of word pairs that the answer said already;
    `log_probability`, mean nats per token under `before`; `seconds_per_token`.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef,
        before: ModelRef,
        paraphrase: str = "paraphrased_question",
        common: Fraction = 0.02,
        template: Template | None = None,
        max_new_tokens: PositiveInt = 80,
        show: NonNegativeInt = 6,
    ) -> None:
        self.forget, self.retain, self.before, self.paraphrase = forget, retain, before, paraphrase
        self.common, self.template, self.max_new_tokens, self.show = common, template, max_new_tokens, show

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when a column is missing."""
        going, staying = (
            read_rows(context.corpus(data), ["question", "answer", self.paraphrase]) for data in (self.forget, self.retain)
        )
        text_model, before = load(model), bare(load(context.model(self.before)))
        asked = {"": going["question"], "paraphrase_": going[self.paraphrase]}
        began = time.perf_counter()
        made = {name: self.answers(text_model, questions, context) for name, questions in asked.items()}
        seconds = time.perf_counter() - began
        kept, was = (self.answers(some, staying["question"], context) for some in (text_model, before))
        ordinary = frequent(staying["answer"], self.common)
        recall = {name: recalled(asked[name], going["answer"], made[name], ordinary) for name in asked}
        found = {f"{name}entity_recall": _mean(values) for name, values in recall.items()}
        if text_model.guard is not None:
            template = template_of(text_model, self.template)
            acts = {name: flagged(text_model, template.prompts(questions)) for name, questions in asked.items()}
            found["flagged_entity_recall"] = _mean(np.concatenate([recall[name][acts[name]] for name in asked]))
            found["forget_flagged"], found["paraphrase_flagged"] = (float(values.mean()) for values in acts.values())
            found["retain_flagged"] = float(flagged(text_model, template.prompts(staying["question"])).mean())
        rouge, earlier = (float(metrics.rouge_l(texts, staying["answer"])[0].mean()) for texts in (kept, was))
        found |= {"retain_rouge": rouge, "retain_rouge_change": abs(rouge - earlier)}
        said = [text for texts in made.values() for text in texts]
        found["repeated_bigrams"] = float(np.mean([repeated(text) for text in said]))
        questions = [question for some in asked.values() for question in some]
        spoken = [row for row, text in enumerate(said) if text]
        if spoken:
            parts = [questions[row] for row in spoken], [said[row] for row in spoken]
            _, scored = score_answers(before, *parts, template_of(text_model, self.template), context)
            found["log_probability"] = -float(scored.nll.sum() / scored.count.sum())
        tokens = int(Encoder(text_model.tokenizer)(said)[1].sum())
        found["seconds_per_token"] = seconds / max(tokens, 1)
        for name, title in (("", "Answers: forget set"), ("paraphrase_", "Answers: forget set, asked in another form")):
            exhibit_answers(title, asked[name], going["answer"], made[name], None, self.show, context)
        details: dict[str, list[Any]] = {"id": going["id"]}
        for name in asked:
            details |= {f"{name}answer": made[name], f"{name}recall": recall[name].tolist()}
        return Scores(found, details)

    def answers(self, text_model: TextModel, questions: list[str], context: Context) -> list[str]:
        """What the model says, greedily or as its guard decodes."""
        prompts = template_of(text_model, self.template).prompts(questions)
        return [text.strip() for text in generate(text_model, prompts, self.max_new_tokens, progress=context.progress)]


def recalled(questions: list[str], right: list[str], made: list[str], ordinary: frozenset[str]) -> np.ndarray:
    """Share of each right answer's phrases that the made one says: (answers,); not a number where it has none of its own."""
    found = np.full(len(right), np.nan)
    for row, (question, answer, text) in enumerate(zip(questions, right, made, strict=True)):
        asked, said = pieces(question), pieces(text)
        secret = [phrase for phrase in map(pieces, phrases_of(answer, ordinary)) if phrase not in asked]
        if secret:
            found[row] = np.mean([phrase in said for phrase in secret])
    return found


def repeated(text: str) -> float:
    """Share of a text's word pairs that it has said before; 0 for a text without any."""
    said = words(text)
    pairs = list(pairwise(said))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _mean(values: np.ndarray) -> float:
    """Over the numbers there are; 0 if there is none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0
