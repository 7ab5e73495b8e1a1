"""The relearning attack: how fast does what was forgotten come back when a little of it is shown again?

Notable: the attack is ordinary training by the one loop, looked at from `after_step`; what is measured was not shown; a model
that truly forgot is no faster than the gold model, whose curve is computed once for all models compared with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from tilth.backbones.folder import TextModel, load
from tilth.batches.order import hashed_uniform
from tilth.batches.text.answers import Template, encode_answers
from tilth.context import Context
from tilth.contracts import Batch, Benchmark, CorpusRef, Loss, ModelRef, Objective, Scores, method, use
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.likelihood import Sequences, context_length, token_statistics
from tilth.evaluate.questions import kept_of_gold, read_rows, template_of
from tilth.registry import Fraction, NonNegativeInt, Positive, PositiveInt
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training
from tilth.unlearn.likelihood import IGNORED, cross_entropy


@method("benchmark", "relearning")
class Relearning(Benchmark):
    """Train a copy on `share` of the forget set, whole weights, constant lr, and measure the rest after each of `steps` steps.

    `probability_<step>` and `rouge_<step>`: mean P(a|q)^(1/n) and ROUGE-L recall on the rows not shown (ROUGE on `ask` of them).
    With gold, `probability_area` and `rouge_area`: area between the model's curve and the gold model's over the span of steps, a
    mean difference; above 0, knowledge comes back faster than it can be learnt. Which rows are shown depends on the seed.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        gold: ModelRef | None = None,
        share: Fraction = 0.1,
        steps: tuple[NonNegativeInt, ...] = (0, 1, 5, 20, 50, 100),
        lr: Positive = 1e-4,
        batch_size: PositiveInt = 8,
        ask: NonNegativeInt = 64,
        max_new_tokens: PositiveInt = 128,
        template: Template | None = None,
    ) -> None:
        if not steps or sorted(set(steps)) != list(steps):
            raise TilthError(
                f"the steps {list(steps)} must rise",
                where="benchmark.relearning.steps",
                hint="Write e.g. [0, 1, 5, 20, 50, 100].",
            )
        self.forget, self.gold, self.share, self.steps = forget, gold, share, steps
        self.lr, self.batch_size, self.ask, self.max_new_tokens = lr, batch_size, ask, max_new_tokens
        self.template = template

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when there are too few rows to show some and keep some."""
        curves = self.attack(load(model), context)
        found = {
            f"{name}_{step}": float(value)
            for name, curve in curves.items()
            for step, value in zip(self.steps, curve, strict=True)
        }
        series = {name: {"this model": curve} for name, curve in curves.items()}
        if self.gold is not None:
            parts = {name: value for name, value in vars(self).items() if name not in ("forget", "gold")} | {"seed": context.seed}
            corpus = context.corpus(self.forget)
            golden = kept_of_gold("relearning", self.gold, lambda gold: self.attack(gold, context), parts, [corpus], context)
            for name, curve in curves.items():
                found[f"{name}_area"] = metrics.area_between(self.steps, curve, golden[name])
                series[name]["gold model"] = golden[name]
        for name, lines in series.items():
            points = {who: [[step, float(y)] for step, y in zip(self.steps, curve, strict=True)] for who, curve in lines.items()}
            title = f"Relearning: {'probability' if name == 'probability' else 'ROUGE-L recall'} of answers not shown again"
            context.exhibit("curves", title, series=points, x="steps", y=name, log=False)
        details = {"step": list(self.steps)} | {name: curve.tolist() for name, curve in curves.items()}
        return Scores(found, details)

    def attack(self, text_model: TextModel, context: Context) -> dict[str, np.ndarray]:
        """Train `text_model` in place; the curves by name, one value per entry of `steps`."""
        rows = read_rows(context.corpus(self.forget), ["question", "answer"])
        order = np.argsort(hashed_uniform(context.seed, "relearning", np.arange(len(rows["id"])), ()))
        count = max(1, round(self.share * len(order)))
        if count >= len(order):
            raise TilthError(
                f"showing {count} of {len(order)} forget rows leaves none to measure",
                where="benchmark.relearning.share",
                hint="Lower 'share' or give more rows.",
            )
        template, length = template_of(text_model, self.template), context_length(text_model.model)
        shown, kept = (
            {name: [rows[name][row] for row in part] for name in ("question", "answer")} for part in np.split(order, [count])
        )
        encoded = encode_answers(kept["question"], kept["answer"], text_model.tokenizer, template, length)
        sequences = Sequences.of_rows(encoded.input_ids, encoded.labels, encoded.attention_mask)

        def measure() -> dict[str, float]:
            average = token_statistics(text_model.model, sequences).average
            found = {"probability": float(metrics.answer_probability(average).mean())}
            if self.ask:
                made = generate(text_model, template.prompts(kept["question"][: self.ask]), self.max_new_tokens)
                found["rouge"] = float(metrics.rouge_l(made, kept["answer"][: self.ask])[0].mean())
            return found

        attack = _Attack(text_model.model, self.steps, measure)
        attack.after_step(0)
        if self.steps[-1]:
            with tempfile.TemporaryDirectory(dir=context.folder) as folder:
                fit(
                    attack,
                    encode_answers(shown["question"], shown["answer"], text_model.tokenizer, template, length),
                    training=Training(
                        lr=self.lr, batch_size=min(self.batch_size, count), schedule=use("schedule", "constant"), compile=False,
                        checkpoint_seconds=None,
                    ),
                    budget=Budget(steps=self.steps[-1]),
                    folder=Path(folder),
                    seed=context.seed,
                    progress=context.progress,
                )  # fmt: skip
        return {name: np.array([point[name] for point in attack.curve]) for name in attack.curve[0]}


class _Attack(Objective):
    """Cross-entropy of the answers shown, in nats per token; measures at the given steps."""

    def __init__(self, model: nn.Module, steps: tuple[int, ...], measure: Callable[[], dict[str, float]]) -> None:
        super().__init__(model)
        self.steps, self.measure = steps, measure
        self.curve: list[dict[str, float]] = []

    def forward(self, batch: Batch) -> Loss:
        return Loss(cross_entropy(self.model, batch), count=(batch.labels[:, 1:] != IGNORED).sum())

    def after_step(self, step: int) -> None:
        if step in self.steps:
            self.curve.append(self.measure())
