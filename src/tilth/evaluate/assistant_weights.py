"""How much of an assistant must be subtracted: probability of answers against the weight of the logit difference.

Notable: one trained assistant serves every weight, so the curve costs a few forward passes and no training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tilth.backbones.folder import load
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, Scores, method
from tilth.errors import TilthError
from tilth.evaluate.metrics import answer_probability
from tilth.evaluate.questions import read_rows, score_answers, template_of
from tilth.unlearn.uld import ULD


@method("benchmark", "assistant_weights", systems=[94])
class AssistantWeights(Benchmark):
    """Mean P(a|q)^(1/n) on forget and retain set for each weight w <= 0 of a model guarded by ULD   (arXiv 2406.08607, section 3)

    `forget_probability_k`, `retain_probability_k` at weights[k]; `largest_rise`: the most by which the forget set's probability
    grows from one weight to the next; at most 0 says that it falls all the way.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef,
        weights: tuple[float, ...] = (0.0, -0.2, -0.4, -0.6, -0.8, -1.0, -1.2),
        template: Template | None = None,
    ) -> None:
        if len(weights) < 2 or any(weight > 0 for weight in weights):
            raise TilthError("a curve needs two weights or more, none above 0", where="assistant_weights.weights")
        self.sets, self.weights, self.template = {"forget": forget, "retain": retain}, weights, template

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the model has no assistant."""
        text_model = load(model)
        guard = text_model.guard
        if not isinstance(guard, ULD):
            raise TilthError("the model has no assistant to be weighed", where=str(model), hint="Unlearn with 'uld'.")
        template = template_of(text_model, self.template)
        found: dict[str, float] = {}
        curves: dict[str, list[float]] = {}
        for name, data in self.sets.items():
            rows = read_rows(context.corpus(data), ["question", "answer"])
            curve = []
            for weight in self.weights:
                guard.weight = weight
                _, scored = score_answers(text_model, rows["question"], rows["answer"], template, context)
                curve.append(float(answer_probability(scored.average).mean()))
            found |= {f"{name}_probability_{number}": value for number, value in enumerate(curve)}
            curves[name] = curve
        found["largest_rise"] = float(np.diff(curves["forget"]).max())
        series = {name: [[weight, value] for weight, value in zip(self.weights, curve)] for name, curve in curves.items()}
        context.exhibit("curves", "Weight of the assistant", series=series, x="weight", y="probability", log=False)
        return Scores(found)
