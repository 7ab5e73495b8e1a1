"""What is left of each skill: exact answers where there is one right answer, bits per character where there are many.

Notable: measured as a user meets the model, through its guard: a refused question is answered wrongly and a refused passage is
predicted as if all tokens were equally likely; how often that happens is a figure of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.guarded import flagged
from tilth.evaluate.questions import kept_of_gold, read_rows, score_answers, template_of
from tilth.registry import PositiveInt


@method("benchmark", "skills", systems=[74])
class SkillSuite(Benchmark):
    """Per skill its figure and `<skill>_drop`, the share of it that is gone since `before`   (arXiv 2503.21730, section 4)

    data: rows with skill, question and answer. exact: skills whose figure is `<skill>_accuracy`, the share of greedy answers
    that are the right one; drop = (before - now) / before. The others have `<skill>_bits`, bits per character of the answers (the
    end token included in the bits); drop = (now - before) / before. forget: skills that should go. `forget_drop` and `retain_drop`: means
    of the drops of skills that should go and stay; `worst_retain_drop`; `margin` = forget_drop - retain_drop.
    `<skill>_refused`: share of its questions that the model's guard refuses.
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        before: ModelRef,
        forget: list[str],
        exact: list[str],
        template: Template | None = None,
        max_new_tokens: PositiveInt = 16,
    ) -> None:
        self.data, self.before, self.forget, self.exact = data, before, forget, exact
        self.template, self.max_new_tokens = template, max_new_tokens

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when a skill that should go is not in the data, or nothing else is."""
        rows = read_rows(context.corpus(self.data), ["skill", "question", "answer"])
        skills = sorted(set(rows["skill"]))
        if not set(self.forget) <= set(skills) or not set(skills) - set(self.forget):
            raise TilthError(
                f"the data's skills are {', '.join(skills)}", where="benchmark.skills.forget", hint="Name some of them, not all."
            )
        text_model = load(model)
        now = self.figures(text_model, rows, context)
        parts = {"exact": self.exact, "template": self.template, "max_new_tokens": self.max_new_tokens}
        was = kept_of_gold(
            "skills", self.before, lambda other: self.figures(other, rows, context), parts, [context.corpus(self.data)], context
        )
        found: dict[str, float] = {}
        for skill in skills:
            figure, before = float(now[skill]), float(was[skill])
            name = f"{skill}_accuracy" if skill in self.exact else f"{skill}_bits"
            drop = before - figure if skill in self.exact else figure - before
            found |= {name: figure, f"{name}_before": before, f"{skill}_drop": drop / max(before, 1e-9)}
            acts = flagged(text_model, template_of(text_model, self.template).prompts(_of(rows, skill, "question")))
            refuses = text_model.guard is not None and text_model.guard.refusal is not None
            found[f"{skill}_refused"] = float(acts.mean()) if refuses else 0.0
        gone = [found[f"{skill}_drop"] for skill in self.forget]
        kept = [found[f"{skill}_drop"] for skill in skills if skill not in self.forget]
        found |= {"forget_drop": float(np.mean(gone)), "retain_drop": float(np.mean(kept)), "worst_retain_drop": max(kept)}
        found["margin"] = found["forget_drop"] - found["retain_drop"]
        lines: list[list[Any]] = [
            [
                skill,
                "exact answers" if skill in self.exact else "bits per character",
                float(was[skill]),
                float(now[skill]),
                found[f"{skill}_drop"],
                found[f"{skill}_refused"],
            ]
            for skill in skills
        ]
        columns = ["skill", "figure", "before", "now", "share lost", "refused"]
        note = f"To go: {', '.join(self.forget)}. Bits per character are lower when better."
        context.exhibit("table", "Skills", columns=columns, rows=lines, note=note)
        return Scores(found)

    def figures(self, text_model: TextModel, rows: dict[str, list[Any]], context: Context) -> dict[str, np.ndarray]:
        """Skill -> its figure, of the model as it is used."""
        template = template_of(text_model, self.template)
        found = {}
        for skill in sorted(set(rows["skill"])):
            questions, right = _of(rows, skill, "question"), _of(rows, skill, "answer")
            if skill in self.exact:
                made = generate(text_model, template.prompts(questions), self.max_new_tokens, progress=context.progress)
                found[skill] = metrics.exact_match(made, right).mean()
            else:
                _, scored = score_answers(text_model, questions, right, template, context)
                found[skill] = scored.nll.sum() / np.log(2) / sum(map(len, right))
        return {skill: np.asarray(value) for skill, value in found.items()}


def _of(rows: dict[str, list[Any]], skill: str, column: str) -> list[str]:
    return [value for value, its in zip(rows[column], rows["skill"], strict=True) if its == skill]
