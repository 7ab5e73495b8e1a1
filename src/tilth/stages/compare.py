"""Several models through one benchmark: one table and one picture, with the seconds each took to make."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from tilth.context import Context
from tilth.contracts import Benchmark, Configured, Kind, ModelRef, Stage, method
from tilth.errors import TilthError
from tilth.index import sources
from tilth.registry import Reference, plain, rebuilt
from tilth.store import digest


@method("stage", "compare")
class Compare(Stage):
    """models: what is compared, in the order of the rows; benchmark: by what.

    x: the metric on the picture's horizontal axis; y: metrics that each give one picture. columns: metrics of the table, all without
    any. metrics: `<model>_<metric>` for x and y, and `<model>_seconds`, what the stage that made the model took. A model that
    answers through a guard is marked: its weights were not unlearned.
    """

    gives = "scores"

    def __init__(
        self,
        *,
        models: list[ModelRef],
        benchmark: Annotated[Configured, Kind("benchmark")],
        x: str = "model_utility",
        y: tuple[str, ...] = ("forget_probability",),
        columns: tuple[str, ...] = (),
    ) -> None:
        self.models, self.benchmark, self.x, self.y, self.columns = models, benchmark, x, y, columns

    def check(self) -> None:
        if len(set(self.models)) < len(self.models) or not self.models:
            raise TilthError("'models' must name at least one model, each once", where="compare.models")

    def run(self, context: Context) -> dict[str, float]:
        """Raises TilthError when the benchmark has no metric called as an axis or a column."""
        scores = {}
        for number, name in enumerate(self.models, start=1):
            context.progress.say(f"compare, {number} of {len(self.models)}: {name}")
            scores[name] = self.scores(name, context)
        shown = self.columns or tuple(dict.fromkeys(metric for found in scores.values() for metric in found))
        for metric in (self.x, *self.y, *shown):
            if not any(metric in found for found in scores.values()):
                raise TilthError(f"the benchmark gives no '{metric}'", where="compare", hint="It gives " + ", ".join(next(iter(scores.values()))) + ".")  # fmt: skip
        seconds = {name: _seconds(context.model(name)) for name in self.models}
        context.exhibit(
            "table",
            "Comparison",
            columns=["model", "weights unlearned", "seconds", *shown],
            rows=[
                [
                    name,
                    "no: guarded" if (context.model(name) / "guard").is_dir() else "",
                    seconds[name],
                    *(scores[name].get(metric) for metric in shown),
                ]
                for name in self.models
            ],
            note="Seconds are what the stage that made the model took, on the machine it ran on.",
        )
        for y in self.y:
            points = {name: [[found[self.x], found[y]]] for name, found in scores.items() if self.x in found and y in found}
            words = self.x.replace("_", " "), y.replace("_", " ")
            context.exhibit(
                "curves", f"{words[1]} against {words[0]}".capitalize(), series=points, x=words[0], y=words[1], log=False
            )
        metrics = {
            f"{name}_{metric}": scores[name][metric] for name in scores for metric in (self.x, *self.y) if metric in scores[name]
        }
        return metrics | {f"{name}_seconds": value for name, value in seconds.items() if value is not None}

    def scores(self, name: str, context: Context) -> dict[str, float]:
        """The benchmark's metrics of one model, from disk if the same was measured before."""

        def content(mark: Reference, reference: str) -> str:
            return context.corpus(reference).fingerprint if mark.gives == "corpus" else context.keys.get(reference, reference)

        code = digest([path.read_text(encoding="utf-8") for path in sorted(sources(self.benchmark.cls.__module__))])
        parts = {"model": context.keys.get(name, name), "benchmark": plain(rebuilt(self.benchmark, content)), "code": code}

        def make(folder: Path) -> None:
            benchmark: Benchmark = self.benchmark.build()
            found = benchmark(context.model(name), replace(context, folder=folder)).metrics
            (folder / "metrics.json").write_text(json.dumps(found), encoding="utf-8")

        found: dict[str, float] = json.loads(
            (context.cache("compared", parts, make) / "metrics.json").read_text(encoding="utf-8")
        )
        return found


def _seconds(model: Path) -> float | None:
    """What the stage that made a model took, from the record beside its folder; None for a model that no stage made."""
    record = model.parent / "stage.json"
    if not record.is_file():
        return None
    said: Any = json.loads(record.read_text(encoding="utf-8"))
    return float(said["seconds"])
