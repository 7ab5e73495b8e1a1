"""How many steps a way of unlearning needs to forget, and what is left of the rest at that moment.

Notable: methods are compared where they are equally far, not after equally many steps; training is the one loop's, looked at from
`after_step`, and ends as soon as the model knows the forget set no better than the gold model does.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from tilth.backbones.folder import TextModel, load
from tilth.batches.text.encoding import end_token
from tilth.context import Context
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, ModelRef, Objective, Scores, method, use
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import kept_of_gold, read_rows, score_answers, template_of, without_end
from tilth.registry import PositiveInt
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget


@method("benchmark", "forgetting_speed", systems=[22])
class ForgettingSpeed(Benchmark):
    """Unlearn a copy of the model with `method` and `adapter`, and measure at the first step at which the forget set is gone.

    Gone: the share of its answer tokens that the model would say, teacher-forced (exact memorisation), is below the gold model's,
    `threshold`. Looked at every `every` steps; after `steps` the run ends anyway.

    Metrics: reached (that step; infinite if there is none), threshold, forget_accuracy, forget_probability, retain_probability and
    retain_rouge (ROUGE-L recall) at that step, or at the last.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef,
        gold: ModelRef,
        method: Annotated[Configured, Kind("unlearn")] = use("unlearn", "npo"),
        adapter: Annotated[Configured, Kind("adapter")] | None = None,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "answers"),
        training: Training = Training(),
        steps: PositiveInt = 100,
        every: PositiveInt = 1,
        max_new_tokens: PositiveInt = 128,
    ) -> None:
        if not issubclass(method.cls, Objective):
            raise TilthError(
                f"'{method.name}' does not train in steps", where="forgetting_speed.method", hint="Name an objective."
            )
        self.forget, self.retain, self.gold, self.method, self.adapter = forget, retain, gold, method, adapter
        self.batches, self.training, self.steps, self.every = batches, training, steps, every
        self.max_new_tokens = max_new_tokens

    def __call__(self, model: Path, context: Context) -> Scores:
        text_model = load(model)
        sets = {
            name: read_rows(context.corpus(data), ["question", "answer"])
            for name, data in (("forget", self.forget), ("retain", self.retain))
        }
        kept = kept_of_gold(
            "forgetting_speed",
            self.gold,
            lambda gold: {"accuracy": np.array(known(gold, sets["forget"], context)[0])},
            {},
            [context.corpus(self.forget)],
            context,
        )
        threshold = float(kept["accuracy"])
        curve: list[tuple[int, float, float]] = []

        def watch(step: int) -> None:
            if step % self.every == 0 or step == self.steps:
                accuracy, probability = known(text_model, sets["forget"], context)
                curve.append((step, accuracy, probability))
                if accuracy < threshold:
                    raise _Reached

        with tempfile.TemporaryDirectory(dir=context.folder) as folder:
            inside = replace(context, folder=Path(folder), shared=context.shared or context.folder / "shared")
            try:
                forget(
                    text_model, context.corpus(self.forget), context.corpus(self.retain),
                    method=_Watched(self.method.kind, self.method.name, self.method.settings, watch), batches=self.batches,
                    training=self.training, budget=Budget(steps=self.steps), context=inside, adapter=self.adapter,
                )  # fmt: skip
            except _Reached:
                text_model.model.eval()
        step, accuracy, probability = curve[-1]
        questions, answers = sets["retain"]["question"], sets["retain"]["answer"]
        made = generate(text_model, template_of(text_model, None).prompts(questions), self.max_new_tokens)
        context.exhibit(
            "curves", "Forgetting, step by step",
            series={"accuracy": [[at, a] for at, a, _ in curve], "probability": [[at, p] for at, _, p in curve]},
            x="step", y="of the forget set", log=False,
        )  # fmt: skip
        found = {
            "threshold": threshold,
            "reached": float(step) if accuracy < threshold else math.inf,
            "forget_accuracy": accuracy,
            "forget_probability": probability,
            "retain_probability": known(text_model, sets["retain"], context)[1],
            "retain_rouge": float(metrics.rouge_l(made, answers)[0].mean()),
        }
        return Scores(found)


def known(text_model: TextModel, rows: dict[str, list[Any]], context: Context) -> tuple[float, float]:
    """Mean over the rows of the share of answer tokens the model would say, and of P(a|q)^(1/n)."""
    encoded, found = score_answers(text_model, rows["question"], rows["answer"], template_of(text_model, None), context)
    hits, starts = without_end(encoded, found, end_token(text_model.tokenizer))
    return float(metrics.exact_memorisation(hits, starts).mean()), float(metrics.answer_probability(found.average).mean())


class _Reached(Exception):
    """Raised out of a run that need not go on."""


@dataclass(frozen=True)
class _Watched(Configured):
    """A method whose objective tells `watch` the number of every step it has done."""

    watch: Callable[[int], None] = field(default=lambda step: None)

    def build(self, *objects: Any) -> Any:
        objective = super().build(*objects)
        own = objective.after_step

        def after_step(step: int) -> None:
            own(step)
            self.watch(step)

        objective.after_step = after_step
        return objective
