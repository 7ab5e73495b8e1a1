"""Take something out of a model."""

from typing import Annotated, Literal

from tilth.backbones.eight_bit import check_installed
from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import Configured, CorpusRef, Kind, ModelRef, Stage, method, use
from tilth.registry import plain
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import check_eight_bit, forget


@method("stage", "unlearn")
class Unlearn(Stage):
    """model: what to take it from; forget: what is to go; retain: what is to stay; method: how.

    adapter: train low-rank additions instead of the weights themselves ('lora', 'fila'); they are folded in afterwards.
    load: '8bit' reads the linear layers rounded to 8 bits, to save memory: for guards, and for objectives with the adapter 'lora',
    whose additions then go to the weights as they were saved.
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
        load: Literal["as_saved", "8bit"] = "as_saved",
    ) -> None:
        self.model, self.forget, self.retain, self.method, self.adapter = model, forget, retain, method, adapter
        self.budget, self.batches, self.training, self.eight_bit = budget, batches, training, load == "8bit"

    def check(self) -> None:
        if self.eight_bit:
            check_installed()
            check_eight_bit(self.method, self.adapter)

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: last loss, steps, seconds."""
        text_model = load(context.model(self.model), eight_bit=self.eight_bit)
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
