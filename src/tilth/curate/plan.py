"""Runs the steps of a curation: one lazy plan, written in one pass, with a count for every step and a reason for every row.

Notable: nothing is dropped while the plan grows; a row's fate is decided in its column 'removed' and the last pass sends
it to one of two files. Steps that learn from the whole corpus (`fit`) run the plan so far over the columns they need and
keep only small columns of it; texts are never collected.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from daft import DataType, col, lit
from daft.functions import hash, when

from tilth.context import Progress
from tilth.contracts import Configured, Step
from tilth.curate.engines import use_engine
from tilth.errors import TilthError
from tilth.registry import configure, plain
from tilth.store import digest

if TYPE_CHECKING:
    from tilth.corpus import Corpus

_STEP, _BEFORE, _CHANGED = "_step", "_before", "_changed_"
_REASONS_SHOWN = 3


@dataclass
class StepCount:
    """What a step did. kept: rows left after it; removed: by it; changed: rows left whose content it rewrote."""

    name: str
    kept: int = 0
    removed: int = 0
    changed: int = 0


@dataclass(frozen=True)
class Curated:
    """corpus: the rows kept, in their order. removed: Parquet file of the others with columns 'removed' (why) and 'step'."""

    corpus: Corpus
    removed: Path
    steps: list[StepCount]
    seconds: float


def curate(
    corpus: Corpus,
    steps: Sequence[Configured],
    folder: Path,
    *,
    engine: str = "native",
    seed: int = 0,
    progress: Progress | None = None,
) -> Curated:
    """Apply the steps in order; write folder/'corpus.lance' and folder/'removed.parquet'.

    Every row of the corpus ends in exactly one of the two. engine: 'native' (this process), 'ray' or 'ray://host:port',
    with identical results. seed: of every step whose own `seed` is not set, different for each of them.
    Raises TilthError when no row is left (the Parquet file is then there to be looked at) and when a step does not fit.
    """
    from tilth.corpus import Corpus

    started, progress, folder = time.perf_counter(), progress or Progress(), Path(folder)
    rows = corpus.count()
    if not rows:
        raise TilthError("there is nothing to curate: the corpus has no rows", where=corpus.uri)
    if "removed" in corpus.columns:
        raise TilthError(
            "the corpus has a column 'removed'", where=corpus.uri, hint="Curation needs this name: rename the column."
        )
    use_engine(engine)
    configured = [_seeded(configure("curate", step), seed, position) for position, step in enumerate(steps)]
    folder.mkdir(parents=True, exist_ok=True)

    frame = _compose(corpus, configured, progress)
    output = _Output(frame, corpus, [StepCount(step.name) for step in configured], folder / "removed.parquet", rows, progress)
    kept_rows = output.kept()
    first = next(kept_rows, None)
    if first is None:
        raise output.nothing_left()
    about = {key: value for key, value in corpus.metadata.items() if key != "content"}
    about |= {
        "kind": corpus.kind,
        "curated": json.dumps([plain(step) for step in configured]),
        "curated_from": corpus.fingerprint,
    }
    kept = Corpus.write(str(folder / "corpus.lance"), _chain(first, kept_rows), corpus.schema, metadata=about)
    if kept.count() + output.removed_rows != rows:
        raise RuntimeError(f"{rows} rows became {kept.count()} kept and {output.removed_rows} removed")
    return Curated(kept, output.path, output.counts, time.perf_counter() - started)


def _seeded(step: Configured, seed: int, position: int) -> Configured:
    """The step with a seed of its own, if it has such a setting and was given none."""
    if "seed" in step.settings and step.settings["seed"] is None:
        return replace(step, settings={**step.settings, "seed": int(digest([seed, position, step.name])[:7], 16)})
    return step


def _compose(corpus: Corpus, steps: Sequence[Configured], progress: Progress) -> daft.DataFrame:
    """The plan: the corpus's columns, 'removed', the number of the step that removed a row, and what each step changed."""
    frame = corpus.frame().with_columns({"removed": lit(None).cast(DataType.string()), _STEP: lit(None).cast(DataType.int32())})
    for position, configured in enumerate(steps):
        step: Step = configured.build()
        if type(step).fit is not Step.fit:
            progress.say(f"{step.name}: looking at all rows")
            step.fit(frame)
        before = frame.with_column(_BEFORE, hash(*map(col, corpus.columns)))
        after = step(before)
        by_this = col("removed").not_null() & col(_STEP).is_null()
        changed = hash(*map(col, corpus.columns)) != col(_BEFORE)
        frame = after.with_columns(
            {_STEP: when(by_this, lit(position).cast(DataType.int32())).otherwise(col(_STEP)), f"{_CHANGED}{position}": changed}
        ).exclude(_BEFORE)
    return frame


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


@dataclass
class _Output:
    """The one pass over the plan: kept rows are handed on, removed ones go to a Parquet file, both are counted."""

    frame: daft.DataFrame
    corpus: Corpus
    counts: list[StepCount]
    path: Path
    rows: int
    progress: Progress
    removed_rows: int = field(default=0, init=False)

    def kept(self) -> Iterator[pa.RecordBatch]:
        """Kept rows with the corpus's columns."""
        names = self.corpus.columns
        schema = pa.schema([*self.corpus.schema, pa.field("removed", pa.string()), pa.field("step", pa.string())])
        left = self.rows
        for count in self.counts:
            count.kept = left
        step_names = pa.array([count.name for count in self.counts], pa.string())
        done = 0
        self.progress.start("curating", self.rows, "rows")
        with pq.ParquetWriter(self.path, schema, compression="zstd") as file:
            for batch in self.frame.to_arrow_iter():
                step = batch.column(_STEP)
                self._count(batch)
                is_kept = step.is_null()
                out = batch.filter(pc.invert(is_kept))
                if out.num_rows:
                    reasons = [out.column("removed"), step_names.take(out.column(_STEP))]
                    columns = dict(zip(schema.names, [*(out.column(name) for name in names), *reasons]))
                    file.write_table(pa.table(columns).cast(schema))
                    self.removed_rows += out.num_rows
                if out.num_rows < batch.num_rows:
                    yield batch.select(names).filter(is_kept).cast(self.corpus.schema)
                done += batch.num_rows
                self.progress.update(done)
        self.progress.end()

    def _count(self, batch: pa.RecordBatch) -> None:
        """Add a batch to the counts of all steps."""
        fate = batch.column(_STEP).fill_null(len(self.counts)).to_numpy()
        removed = np.bincount(fate, minlength=len(self.counts) + 1)
        gone = np.cumsum(removed)
        for position, count in enumerate(self.counts):
            changed = batch.column(f"{_CHANGED}{position}").to_numpy(zero_copy_only=False)
            count.removed += int(removed[position])
            count.kept -= int(gone[position])
            count.changed += int((changed & (fate > position)).sum())

    def nothing_left(self) -> TilthError:
        """All rows were removed: by which step most, and for what reasons."""
        most = max(self.counts, key=lambda count: count.removed)
        table = pq.read_table(self.path, columns=["removed", "step"])
        reasons = table.filter(pc.equal(table["step"], most.name))["removed"].value_counts().to_pylist()
        common = sorted(reasons, key=lambda entry: -entry["counts"])[:_REASONS_SHOWN]
        shown = "; ".join(f"{entry['counts']} x '{entry['values']}'" for entry in common)
        return TilthError(
            f"curation removed all {self.rows} rows, most of them ({most.removed}) in step '{most.name}': {shown}",
            where=self.corpus.uri,
            hint=f"Loosen this step's settings; all reasons are in {self.path}.",
        )
