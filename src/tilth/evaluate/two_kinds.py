"""A task on pictures and one on volumes: what one encoder of both, or one encoder for each, makes of them together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tilth.contracts import Benchmark, Configured, Kind, ModelRef, Scores, method

if TYPE_CHECKING:
    from tilth.context import Context


@method("benchmark", "two_kinds", systems=[82])
class TwoKinds(Benchmark):
    """Metrics: picture_M and volume_M for each metric M of the two benchmarks, and mean_M for those that both have.

    pictures: what the model is measured by; volumes: what of_volumes is measured by, which may be the same model.
    """

    def __init__(
        self,
        *,
        of_volumes: ModelRef,
        pictures: Annotated[Configured, Kind("benchmark")],
        volumes: Annotated[Configured, Kind("benchmark")],
    ) -> None:
        self.of_volumes, self.pictures, self.volumes = of_volumes, pictures, volumes

    def __call__(self, model: Path, context: Context) -> Scores:
        flat = self.pictures.build()(model, context).metrics
        deep = self.volumes.build()(context.model(self.of_volumes), context).metrics
        return Scores(
            {f"picture_{name}": value for name, value in flat.items()}
            | {f"volume_{name}": value for name, value in deep.items()}
            | {f"mean_{name}": (flat[name] + deep[name]) / 2 for name in flat if name in deep}
        )
