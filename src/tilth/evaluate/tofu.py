"""The TOFU protocol: was it forgotten, is the rest still there, and can the model be told from one that never knew?

Notable: raw per-example values are kept as details, because three orientations of these metrics circulate; answers, paraphrases
and wrong answers are scored in one pass; the gold model's scores are computed once for all models compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.batches.text.encoding import end_token
from tilth.batches.text.ragged import offsets
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import exhibit_answers, kept_of_gold, read_rows, score_answers, template_of, without_end
from tilth.registry import NonNegativeInt, PositiveInt

_TRAINED = ("forget", "retain")  # sets whose truth ratio starts from the paraphrase


@method("benchmark", "tofu", systems=[33])
class Tofu(Benchmark):
    """Forget quality and model utility of a question-answering model   (arXiv 2401.06121, section 2.2)

    forget, retain: rows with question, answer, paraphrased_answer and perturbed_answer (a list of wrong answers): TOFU's
    perturbed splits. real_authors, world_facts: rows with question, answer and perturbed_answer.

    Per set: `<set>_probability`, mean of P(a|q)^(1/n), on real authors and world facts normalised over the options;
    `<set>_rouge` and `<set>_rouge_f1`, ROUGE-L of the greedy answer; `<set>_truth_ratio`, mean max(0, 1 - R), on the forget set
    mean min(R, 1/R) (1: right and wrong look alike; it should match the gold model's, not be high), R as in
    `metrics.log_truth_ratio`. `model_utility`: harmonic mean of probability, ROUGE-L recall and truth ratio over the sets
    other than forget. With gold, `forget_quality`: p of the KS test between the truth ratios of model and gold, and
    `log10_forget_quality`. `forget_exact_memorisation`, `forget_extraction_strength`: from teacher-forced argmax predictions.

    limit: only the first rows of each set (300 in TOFU's own scripts). wrong_mean: 'arithmetic' is what the paper writes,
    'geometric' what every released code does. before: a model whose answers are shown beside this one's. show: how many.

    Deviates from the paper where real_authors or world_facts are left out: utility is then over the sets there are.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef,
        real_authors: CorpusRef | None = None,
        world_facts: CorpusRef | None = None,
        gold: ModelRef | None = None,
        before: ModelRef | None = None,
        template: Template | None = None,
        limit: PositiveInt | None = None,
        max_new_tokens: PositiveInt = 200,
        wrong_mean: Literal["geometric", "arithmetic"] = "geometric",
        show: NonNegativeInt = 6,
    ) -> None:
        self.sets = {"forget": forget, "retain": retain, "real_authors": real_authors, "world_facts": world_facts}
        self.gold, self.before, self.template = gold, before, template
        self.limit, self.max_new_tokens, self.wrong_mean, self.show = limit, max_new_tokens, wrong_mean, show

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when a set lacks a column or a row lacks an answer."""
        text_model = load(model)
        rows = {name: self.rows(context.corpus(data), name) for name, data in self.sets.items() if data is not None}
        scored = {name: self.score(text_model, name, rows[name], context) for name in rows}
        together = self.answers(text_model, list(chain.from_iterable(part["question"] for part in rows.values())), context)
        ends = np.cumsum([len(part["question"]) for part in rows.values()]).tolist()
        made = {name: together[end - len(rows[name]["question"]) : end] for name, end in zip(rows, ends, strict=True)}
        rouge = {name: metrics.rouge_l(made[name], rows[name]["answer"]) for name in rows}
        found: dict[str, float] = {}
        for name, values in scored.items():
            recall, f1 = rouge[name]
            found[f"{name}_probability"] = float(values.probability(name).mean())
            found[f"{name}_rouge"], found[f"{name}_rouge_f1"] = float(recall.mean()), float(f1.mean())
            aggregate = metrics.forget_truth_ratio if name == "forget" else metrics.utility_truth_ratio
            found[f"{name}_truth_ratio"] = aggregate(values.log_ratio(name, self.wrong_mean))
        found["forget_exact_memorisation"] = float(scored["forget"].memorisation.mean())
        found["forget_extraction_strength"] = float(scored["forget"].extraction.mean())
        utility = [
            found[f"{name}_{what}"] for name in rows if name != "forget" for what in ("probability", "rouge", "truth_ratio")
        ]
        found["model_utility"] = metrics.harmonic_mean(utility)
        gold = self.gold_scores(rows["forget"], context)
        if gold is not None:
            ratios = (values.log_ratio("forget", self.wrong_mean) for values in (scored["forget"], gold))
            found["forget_quality"], found["log10_forget_quality"] = metrics.forget_quality(*ratios)
        self.exhibits(found, gold, rows, made, context)
        details = [self.details(name, rows[name], scored[name], made[name], rouge[name]) for name in rows]
        return Scores(found, {column: list(chain.from_iterable(part[column] for part in details)) for column in details[0]})

    def rows(self, corpus: Corpus, name: str) -> dict[str, list[Any]]:
        """The set's rows, each checked to have what its metrics need."""
        needed = ["question", "answer", *(["paraphrased_answer"] if name in _TRAINED else []), "perturbed_answer"]
        rows = read_rows(corpus, needed, self.limit)
        for column in needed:
            empty = next((row for row, value in enumerate(rows[column]) if not value), None)
            if empty is not None:
                raise TilthError(
                    f"row '{rows['id'][empty]}' of {name} has no '{column}'",
                    where=f"{corpus.uri} ({corpus.where or 'all rows'})",
                    hint="The truth ratio needs the perturbed splits, e.g. where: \"split = 'forget10_perturbed'\".",
                )
        return rows

    def score(self, text_model: TextModel, name: str, rows: dict[str, list[Any]], context: Context) -> SetScores:
        """Likelihoods of all answers of a set."""
        questions, answers, wrong = rows["question"], rows["answer"], rows["perturbed_answer"]
        paraphrases = rows["paraphrased_answer"] if name in _TRAINED else []
        counts = np.array([len(options) for options in wrong])
        asked = [*questions, *(questions if paraphrases else []), *np.repeat(np.array(questions, dtype=object), counts)]
        encoded, found = score_answers(
            text_model,
            asked,
            [*answers, *paraphrases, *chain.from_iterable(wrong)],
            template_of(text_model, self.template),
            context,
        )
        hits, starts = without_end(encoded, found, end_token(text_model.tokenizer))
        count, first_wrong = len(answers), len(answers) + len(paraphrases)
        return SetScores(
            answer=found.average[:count],
            paraphrase=found.average[count:first_wrong],
            wrong=found.average[first_wrong:],
            starts=offsets(counts),
            memorisation=metrics.exact_memorisation(hits, starts)[:count],
            extraction=metrics.extraction_strength(hits, starts)[:count],
        )

    def answers(self, text_model: TextModel, questions: list[str], context: Context) -> list[str]:
        """What the model says, greedily."""
        prompts = template_of(text_model, self.template).prompts(questions)
        return [text.strip() for text in generate(text_model, prompts, self.max_new_tokens, progress=context.progress)]

    def gold_scores(self, rows: dict[str, list[Any]], context: Context) -> SetScores | None:
        """The gold model's likelihoods on the forget set; None without a gold model."""
        if self.gold is None:
            return None
        corpus = context.corpus(str(self.sets["forget"]))
        parts = {"template": self.template, "limit": self.limit}
        return SetScores(
            **kept_of_gold(
                "tofu", self.gold, lambda gold: vars(self.score(gold, "forget", rows, context)), parts, [corpus], context
            )
        )

    def exhibits(
        self,
        found: dict[str, float],
        gold: SetScores | None,
        rows: dict[str, dict[str, list[Any]]],
        made: dict[str, list[str]],
        context: Context,
    ) -> None:
        """Tables, notes and answers for the report."""
        kinds = ("probability", "rouge", "rouge_f1", "truth_ratio")
        lines: list[list[Any]] = [
            [name.replace("_", " "), len(rows[name]["id"]), *(found[f"{name}_{kind}"] for kind in kinds)] for name in rows
        ]
        if gold is not None:
            ratio = metrics.forget_truth_ratio(gold.log_ratio("forget", self.wrong_mean))
            lines.insert(
                1,
                [
                    "forget, by the gold model",
                    len(rows["forget"]["id"]),
                    float(gold.probability("forget").mean()),
                    None,
                    None,
                    ratio,
                ],
            )
        context.exhibit(
            "table",
            "TOFU",
            columns=["set", "examples", "probability", "ROUGE-L recall", "ROUGE-L F1", "truth ratio"],
            rows=lines,
            note="On the forget set low probability and ROUGE mean forgotten; its truth ratio should match the gold model's. "
            "On the other sets higher is better.",
        )
        summary = [
            [key.replace("_", " "), found[key]]
            for key in ("model_utility", "forget_quality", "log10_forget_quality")
            if key in found
        ]
        context.exhibit("table", "Utility and forget quality", columns=["metric", "value"], rows=summary, note="")
        if gold is None:
            context.exhibit(
                "note",
                "No forget quality",
                text="Forget quality compares with a gold model trained without the forget set, and none was given under 'gold'.",
            )
        absent = [name.replace("_", " ") for name, data in self.sets.items() if data is None]
        if absent:
            given = 3 * (len(self.sets) - 1 - len(absent))
            text = (
                f"Model utility is the harmonic mean of {given} numbers instead of nine: no {' and no '.join(absent)} were given."
            )
            context.exhibit("note", "Utility over fewer sets", text=text)

        def earlier(questions: list[str]) -> list[str]:
            return self.answers(load(context.model(str(self.before))), questions, context)

        for name in _TRAINED:
            questions, right = rows[name]["question"], rows[name]["answer"]
            before = earlier if self.before is not None else None
            exhibit_answers(f"Answers: {name} set", questions, right, made[name], before, self.show, context)

    def details(
        self, name: str, rows: dict[str, list[Any]], scored: SetScores, made: list[str], rouge: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, list[Any]]:
        """Raw values of every example."""
        count = len(rows["id"])
        return {
            "set": [name] * count,
            "id": rows["id"],
            "question": rows["question"],
            "answer": rows["answer"],
            "generated": made,
            "average_nll": scored.answer.tolist(),
            "average_nll_paraphrase": scored.paraphrase.tolist() if name in _TRAINED else [None] * count,
            "average_nll_wrong": [part.tolist() for part in np.split(scored.wrong, scored.starts[1:-1])],
            "log_truth_ratio": scored.log_ratio(name, self.wrong_mean).tolist(),
            "rouge": rouge[0].tolist(),
            "rouge_f1": rouge[1].tolist(),
            "exact_memorisation": scored.memorisation.tolist(),
            "extraction_strength": scored.extraction.tolist(),
        }


@dataclass(frozen=True)
class SetScores:
    """Nats per token (examples,) of answer and paraphrase (empty on sets without), and (wrong answers,) of the wrong ones,
    those of example i at starts[i]:starts[i + 1]; memorisation, extraction: of the answer (examples,)."""

    answer: np.ndarray
    paraphrase: np.ndarray
    wrong: np.ndarray
    starts: np.ndarray
    memorisation: np.ndarray
    extraction: np.ndarray

    def probability(self, name: str) -> np.ndarray:
        """Length-normalised; among the options on the sets that were not trained on."""
        if name in _TRAINED:
            return metrics.answer_probability(self.answer)
        return metrics.option_probability(self.answer, self.wrong, self.starts)

    def log_ratio(self, name: str, wrong_mean: str) -> np.ndarray:
        """log R, from the paraphrase on the sets that were trained on."""
        base = self.paraphrase if name in _TRAINED else self.answer
        return metrics.log_truth_ratio(base, self.wrong, self.starts, wrong_mean=wrong_mean)
