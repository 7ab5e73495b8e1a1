"""Fit a model to a labelled task: a probe on frozen features, or the whole model."""

from typing import Annotated

from tilth.adapt.adapt import adapt
from tilth.backbones.folder import load
from tilth.context import Context
from tilth.contracts import Configured, CorpusRef, Kind, ModelRef, Stage, method, use
from tilth.training.settings import Budget, Training


@method("stage", "adapt")
class Adapt(Stage):
    """model: what is adapted; data: labelled rows; test: labelled rows that are only scored; label: the class's column.

    batches: how rows of something else than text are read; left out: as the model was built for.
    """

    gives = "model"

    def __init__(
        self,
        *,
        model: ModelRef,
        data: CorpusRef,
        test: CorpusRef | None = None,
        label: str = "label",
        method: Annotated[Configured, Kind("adapt")] = use("adapt", "linear_probe"),
        budget: Budget = Budget(epochs=3),
        training: Training = Training(),
        batches: Annotated[Configured, Kind("batches")] | None = None,
    ) -> None:
        self.model, self.data, self.test, self.label = model, data, test, label
        self.method, self.budget, self.training, self.batches = method, budget, training, batches

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: accuracy and macro F1 on `test` (on the training rows without one)."""
        adapted = adapt(
            load(context.model(self.model)), context.corpus(self.data),
            test=context.corpus(self.test) if self.test else None, method=self.method, label=self.label,
            training=self.training, budget=self.budget, batches=self.batches, context=context,
        )  # fmt: skip
        return dict(adapted.metrics)
