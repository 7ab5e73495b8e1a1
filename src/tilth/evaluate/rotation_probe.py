"""What of a frozen encoder's accuracy is lost when pictures are turned: probes trained on upright ones, asked about both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Scores, method, use
from tilth.evaluate.image_probe import ImageProbe
from tilth.registry import Positive, PositiveInt

if TYPE_CHECKING:
    from tilth.context import Context


@method("benchmark", "rotation_probe", systems=[7])
class RotationProbe(Benchmark):
    """Metrics of `image_probe` on both sets, as upright_NAME and rotated_NAME, and knn_drop, linear_drop: upright minus rotated.

    train, upright, rotated: labelled rows; upright and rotated should differ in the angle alone. The other settings are those of
    `image_probe`.
    """

    def __init__(
        self,
        *,
        train: CorpusRef,
        upright: CorpusRef,
        rotated: CorpusRef,
        per_class: PositiveInt | None = None,
        neighbours: PositiveInt = 20,
        C: Positive | None = 1.0,
        layer: PositiveInt | None = None,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "pictures"),
    ) -> None:
        self.train, self.upright, self.rotated, self.per_class = train, upright, rotated, per_class
        self.neighbours, self.C, self.layer, self.batches = neighbours, C, layer, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        metrics: dict[str, float] = {}
        for name in ("upright", "rotated"):
            probe = ImageProbe(
                train=self.train, test=getattr(self, name), per_class=self.per_class, neighbours=self.neighbours, C=self.C,
                layer=self.layer, batches=self.batches,
            )  # fmt: skip
            metrics |= {f"{name}_{metric}": value for metric, value in probe(model, context).metrics.items()}
        for kind in ("knn", "linear"):
            metrics[f"{kind}_drop"] = metrics[f"upright_{kind}_accuracy"] - metrics[f"rotated_{kind}_accuracy"]
        return Scores(metrics)
