"""Take something out of a model."""

from typing import Annotated

from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import Configured, CorpusRef, Kind, ModelRef, Stage, method, use
from tilth.registry import plain
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget


@method("stage", "unlearn")
class Unlearn(Stage):
    """model: what to take it from; forget: what is to go; retain: what is to stay; method: how.

    adapter: train low-rank additions instead of the weights themselves ('lora', 'fila'); they are folded in afterwards.
    """

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
        adapter: Annotated[Configured, Kind("adapter")] | None = None,
    ) -> None:
        self.model, self.forget, self.retain, self.method, self.adapter = model, forget, retain, method, adapter
        self.budget, self.batches, self.training = budget, batches, training

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: last loss, steps, seconds."""
        text_model = load(context.model(self.model))
        retain = context.corpus(self.retain) if self.retain else None
        fitted = forget(
            text_model, context.corpus(self.forget), retain,
            method=self.method, batches=self.batches, training=self.training, budget=self.budget, context=context,
            adapter=self.adapter,
        )  # fmt: skip
        removed = {"forgot": context.corpus(self.forget).fingerprint, "method": plain(self.method)}
        about = {**text_model.about, "history": [*text_model.about.get("history", []), removed]}
        if context.first:
            save(text_model.model, text_model.tokenizer, context.folder / "model", about, guard=text_model.guard)
        return {"loss": fitted.loss, "steps": float(fitted.steps), "seconds": fitted.seconds, **fitted.metrics}
