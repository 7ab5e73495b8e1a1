"""Turn a corpus into a better one, keeping what was removed and why."""

from typing import Annotated

from tilth.context import Context
from tilth.contracts import Configured, CorpusRef, Kind, Stage, method
from tilth.curate import curate


@method("stage", "curate")
class Curate(Stage):
    """data: what to curate. steps: in this order. engine: 'native', or 'ray' / 'ray://host:port' for a cluster."""

    gives = "corpus"
    seeded = False

    def __init__(self, *, data: CorpusRef, steps: list[Annotated[Configured, Kind("curate")]], engine: str = "native") -> None:
        self.data, self.steps, self.engine = data, steps, engine

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance' and 'removed.parquet'; metrics: rows in, kept, removed, and removed by each step."""
        corpus = context.corpus(self.data)
        done = curate(corpus, self.steps, context.folder, engine=self.engine, progress=context.progress)
        rows = [[step.name, step.kept, step.removed, step.changed] for step in done.steps]
        context.exhibit("table", "What curation did, step by step", columns=["step", "kept", "removed", "changed"], rows=rows)
        kept, removed = done.corpus.count(), sum(step.removed for step in done.steps)
        by_step = {f"removed_by_{step.name}": float(step.removed) for step in done.steps}
        return {"rows": float(kept + removed), "kept": float(kept), "removed": float(removed), **by_step}
