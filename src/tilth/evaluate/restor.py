"""RESTOR: after unlearning what corrupted a model, are the right facts back, or are only the wrong ones gone?

Notable: three models are measured alike (clean, corrupted, unlearned) and the recovery is where the third stands between the
others; options are scored by their mean token log-probability, so that no sampling noise and no judge enters; the judged
greedy answers stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.batches.text.ragged import offsets
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.evaluate.facts import Fact, Facts, Selection, accepts, hashed
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import kept_of_gold, score_answers
from tilth.registry import NonNegativeInt, PositiveInt

_PLAIN = Template(prompt="{question}", answer=" {answer}")


def recovery(unlearned: float, corrupted: float, clean: float) -> float:
    """(unlearned - corrupted) / (clean - corrupted), accuracies: 1 when all that was lost is back, 0 when nothing is.

    Not a number where corruption took nothing away: there is nothing to recover   (arXiv 2411.00204, section 3).
    """
    return (unlearned - corrupted) / (clean - corrupted) if clean > corrupted else math.nan


@method("benchmark", "restor", systems=[56])
class Restor(Benchmark):
    """Recovery of facts about affected entities   (arXiv 2411.00204, sections 3 and 4)

    facts: rows with entity, property, question, answers (and aliases); selection: as in the stage 'fact_texts' that corrupted the
    model. clean, corrupted: the models before and after corruption; without both there is no recovery. A prompt is five lines
    'question answer' of other entities with the same relation, then the question.

    `accuracy`: share of facts whose likeliest option (right ones, the wrong one told, up to `options` others of the relation; mean
    log-probability of a token) is right. `corrupted_accuracy`: share where it is the wrong one told. `judged_accuracy`: share of
    greedy answers that are right by name or alias. `untouched_accuracy`: accuracy on up to `untouched` facts of unaffected entities.
    `log_probability_<right|corrupted|random>`: means over facts. The same of clean and corrupted with `clean_` and
    `corrupted_model_` before them. `recovery`; `judged_recovery`; `forgetting`: by what share corrupted_accuracy fell.

    validation: tenth of the facts to choose settings by: 'only' measures it, 'without' the rest, 'with' everything.

    Deviates: answers are greedy, not sampled, and judged by names, where the paper samples once and asks a language model.
    """

    def __init__(
        self,
        *,
        facts: CorpusRef,
        selection: Selection = Selection(),
        clean: ModelRef | None = None,
        corrupted: ModelRef | None = None,
        options: PositiveInt = 6,
        untouched: NonNegativeInt = 50,
        max_new_tokens: NonNegativeInt = 12,
        validation: Literal["with", "only", "without"] = "with",
    ) -> None:
        self.facts, self.selection, self.clean, self.corrupted = facts, selection, clean, corrupted
        self.options, self.untouched, self.max_new_tokens, self.validation = options, untouched, max_new_tokens, validation

    def __call__(self, model: Path, context: Context) -> Scores:
        corpus = context.corpus(self.facts)
        facts = Facts.read(corpus, self.selection)
        asked, beside = self.asked(facts), self.beside(facts)
        parts = {"selection": self.selection, "options": self.options, "untouched": self.untouched,
                 "tokens": self.max_new_tokens, "validation": self.validation}  # fmt: skip
        found: dict[str, float] = {}
        here = self.measure(load(model), facts, asked, beside, context)
        for prefix, reference in (("clean_", self.clean), ("corrupted_model_", self.corrupted)):
            if reference is None:
                continue
            kept = kept_of_gold(
                "restor", reference, lambda gold: self.measure(gold, facts, asked, beside, context), parts, [corpus], context
            )
            found |= {f"{prefix}{name}": value for name, value in summary(kept).items()}
        found |= summary(here)
        if self.clean is not None and self.corrupted is not None:
            found |= self.recovered(found, context)
        else:
            context.exhibit(
                "note", "No recovery",
                text="Recovery says where a model stands between a clean and a corrupted one; give both under 'clean' and 'corrupted'.",
            )  # fmt: skip
        context.exhibit(
            "table", "RESTOR", columns=["measure", "clean", "corrupted", "unlearned"],
            rows=[[name.replace("_", " "), found.get(f"clean_{name}"), found.get(f"corrupted_model_{name}"), found[name]] for name in summary(here)],
            note=f"{len(asked)} facts about {len(facts.affected)} affected entities.",
        )  # fmt: skip
        details = {
            "entity": [fact.entity for fact in asked], "relation": [fact.relation for fact in asked],
            "answer": [fact.objects[0] for fact in asked], "wrong_answer": [facts.wrong(fact, self.selection.seed) for fact in asked],
            **{name: values.tolist() for name, values in here.items() if len(values) == len(asked)},
        }  # fmt: skip
        return Scores(found, details)

    def asked(self, facts: Facts) -> list[Fact]:
        """Facts of affected entities, all or by the validation split."""
        held = {fact for fact in facts.touched if hashed(self.selection.seed, "validation", fact.entity, fact.relation) % 10 == 0}
        kept = {"with": facts.touched, "only": [fact for fact in facts.touched if fact in held]}
        return kept.get(self.validation, [fact for fact in facts.touched if fact not in held])

    def beside(self, facts: Facts) -> list[Fact]:
        """Facts of unaffected entities."""
        order = sorted(facts.untouched, key=lambda fact: hashed(self.selection.seed, "untouched", fact.entity, fact.relation))
        return order[: self.untouched]

    def measure(
        self, text_model: TextModel, facts: Facts, asked: list[Fact], beside: list[Fact], context: Context
    ) -> dict[str, np.ndarray]:
        """Of every fact asked: best (0 right, 1 told, 2 other), right, told, random (mean log-probabilities), judged; and of
        the facts beside: beside (whether the best option is right)."""
        best, means = self.scored(text_model, facts, asked + beside, context)
        said = np.zeros(0, dtype=bool)
        if self.max_new_tokens:
            prompts = [facts.prompt(fact, self.selection.seed) for fact in asked]
            made = generate(text_model, prompts, self.max_new_tokens, progress=context.progress)
            said = np.array([accepts(text, fact, facts.objects(fact.relation)) for text, fact in zip(made, asked, strict=True)])
        count = len(asked)
        right, told, random = means[:count].T
        return {
            "best": best[:count], "right": right, "told": told, "random": random, "judged": said, "beside": best[count:] == 0,
        }  # fmt: skip

    def scored(self, text_model: TextModel, facts: Facts, asked: list[Fact], context: Context) -> tuple[np.ndarray, np.ndarray]:
        """(facts,) kind of the best option; (facts, 3) mean log-probability of right, told and other options."""
        seed = self.selection.seed
        options = [[[*fact.objects], [facts.wrong(fact, seed)], facts.others(fact, seed, self.options)] for fact in asked]
        kinds = [np.repeat([0, 1, 2], [len(group) for group in groups]) for groups in options]
        flat = [list(chain.from_iterable(groups)) for groups in options]
        starts = offsets(np.array([len(names) for names in flat]))
        prompts = [prompt for fact, names in zip(asked, flat, strict=True) for prompt in [facts.prompt(fact, seed)] * len(names)]
        score = option_scores(text_model, prompts, list(chain.from_iterable(flat)), context)
        best, means = np.zeros(len(asked), dtype=np.int64), np.zeros((len(asked), 3))
        for number, kind in enumerate(kinds):
            here = score[starts[number] : starts[number + 1]]
            best[number] = kind[here.argmax()]
            means[number] = [here[kind == which].mean() if (kind == which).any() else math.nan for which in range(3)]
        return best, means

    def recovered(self, found: dict[str, float], context: Context) -> dict[str, float]:
        """Recovery by options and by judged answers, and forgetting; what is undefined is said."""
        made = {}
        for name, metric in (("recovery", "accuracy"), ("judged_recovery", "judged_accuracy")):
            if metric not in found:
                continue
            clean, corrupted = found[f"clean_{metric}"], found[f"corrupted_model_{metric}"]
            made[name] = recovery(found[metric], corrupted, clean)
            if math.isnan(made[name]):
                text = f"The corrupted model's {metric.replace('_', ' ')} ({corrupted:.3f}) is not below the clean model's ({clean:.3f})."
                context.exhibit("note", f"No {name.replace('_', ' ')}", text=f"{text} Nothing was lost that could come back.")
                context.progress.say(f"restor: no {name}: {text}")
        before = found["corrupted_model_corrupted_accuracy"]
        made["forgetting"] = 1 - found["corrupted_accuracy"] / before if before > 0 else math.nan
        return made


def summary(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over facts."""
    found = {
        "accuracy": float((values["best"] == 0).mean()),
        "corrupted_accuracy": float((values["best"] == 1).mean()),
        "log_probability_right": float(np.nanmean(values["right"])),
        "log_probability_corrupted": float(np.nanmean(values["told"])),
        "log_probability_random": float(np.nanmean(values["random"])),
    }
    if len(values["judged"]):
        found["judged_accuracy"] = float(values["judged"].mean())
    if len(values["beside"]):
        found["untouched_accuracy"] = float(values["beside"].mean())
    return found


def option_scores(text_model: TextModel, prompts: Sequence[str], options: Sequence[str], context: Context) -> np.ndarray:
    """Mean log-probability of each option's tokens behind its prompt, without the end token: (options,), in nats."""
    _, found = score_answers(text_model, prompts, options, _PLAIN, context, end=False)
    return -found.average
