"""Measure a model with a benchmark."""

from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq

from tilth.context import Context
from tilth.contracts import Benchmark, Configured, Kind, ModelRef, Stage, method


@method("stage", "evaluate")
class Evaluate(Stage):
    """model: what is measured; benchmark: by what."""

    gives = "scores"

    def __init__(self, *, benchmark: Annotated[Configured, Kind("benchmark")], model: ModelRef) -> None:
        self.benchmark, self.model = benchmark, model

    def run(self, context: Context) -> dict[str, float]:
        """Write 'details.parquet' where the benchmark has per-example values; metrics: the benchmark's."""
        benchmark: Benchmark = self.benchmark.build()
        scores = benchmark(context.model(self.model), context)
        if scores.details:
            pq.write_table(pa.table(scores.details), context.folder / "details.parquet", compression="zstd")
        return scores.metrics
