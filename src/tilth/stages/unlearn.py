"""Take something out of a model."""

import dataclasses
from typing import Annotated

from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import Configured, CorpusRef, Kind, ModelRef, Stage, method, use
from tilth.registry import plain
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget


@method("stage", "unlearn")
class Unlearn(Stage):
    """model: what to take it from; forget: what is to go; retain: what is to stay; method: how."""

    gives = "model"
    trains = True

    def __init__(
        self,
        *,
        model: ModelRef,
        forget: CorpusRef,
        budget: Budget,
        retain: CorpusRef | None = None,
        method: Annotated[Configured, Kind("unlearn")] = use("unlearn", "npo"),
        batches: Annotated[Configured, Kind("batches")] = use("batches", "answers"),
        training: Training = Training(),
    ) -> None:
        self.model, self.forget, self.retain, self.method = model, forget, retain, method
        self.budget, self.batches, self.training = budget, batches, training

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: last loss, steps, seconds."""
        text_model = load(context.model(self.model))
        retain = context.corpus(self.retain) if self.retain else None
        fitted = forget(
            text_model, context.corpus(self.forget), retain,
            method=self.method, batches=self.batches, training=self.training, budget=self.budget, context=context,
        )  # fmt: skip
        removed = {"forgot": context.corpus(self.forget).fingerprint, "method": plain(self.method)}
        about = {**text_model.about, "history": [*text_model.about.get("history", []), removed]}
        if context.first:
            save(text_model.model, text_model.tokenizer, context.folder / "model", about)
        return {key: float(value) for key, value in dataclasses.asdict(fitted).items() if key in ("loss", "steps", "seconds")}
