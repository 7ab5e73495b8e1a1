"""What was measured: audit tables, and answers side by side.

Notable: stages that measure with the same benchmark are rows of one table, and what each model said to the same question
stands together, whichever models the recipe compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tilth.report.glossary import ARROWS, FIRST, Gloss, gloss
from tilth.report.reading import Reader, Stage, as_text

_ANSWER_COLUMNS = ("generated", "generation", "prediction", "output")
_QUESTION_COLUMNS = ("question", "prompt", "text")
_GOLD_COLUMNS = ("answer", "reference", "target", "gold")
_PART_COLUMNS = ("set", "part")
_QUESTIONS = 4  # shown per part


@dataclass(frozen=True)
class Audit:
    """Stages measured by one benchmark. rows: (stage, model, values); columns: the metrics."""

    benchmark: str
    columns: list[Gloss]
    rows: list[tuple[Stage, str, list[float | None]]]

    @property
    def arrows(self) -> list[tuple[str, str]]:
        """Signs used in the table, with what they mean."""
        return list(dict.fromkeys(ARROWS[column.good] for column in self.columns if column.good))


def benchmark_of(stage: Stage) -> str:
    """The benchmark a stage measures with; empty when it measures nothing."""
    given = stage.settings.get("benchmark")
    return next(iter(given), "") if isinstance(given, dict) else given if isinstance(given, str) else ""


def audits(stages: Sequence[Stage]) -> list[Audit]:
    """One table per benchmark, in the order in which benchmarks first appear."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.metrics and (benchmark_of(stage) or stage.kind == "evaluate"):
            groups.setdefault(benchmark_of(stage) or stage.kind, []).append(stage)
    tables = []
    for benchmark, members in groups.items():
        names = list(dict.fromkeys(name for stage in members for name in stage.metrics))
        names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
        rows = [(stage, str(stage.settings.get("model", "")), [stage.metrics.get(name) for name in names]) for stage in members]
        tables.append(Audit(benchmark, [gloss(name) for name in names], rows))
    return tables


@dataclass
class Answers:
    """One question and what each model said. said: (stage, model, answer)."""

    part: str
    question: str
    gold: str = ""
    said: list[tuple[str, str, str]] = field(default_factory=list)


def answers(reader: Reader, stages: Sequence[Stage]) -> dict[str, list[Answers]]:
    """benchmark -> questions with every model's answer, a few per part (forget, retain ...), spread over its rows."""
    found: dict[str, dict[tuple[str, str], Answers]] = {}
    for stage in stages:
        benchmark = benchmark_of(stage)
        if not benchmark:
            continue
        if benchmark not in found:
            asked = dict.fromkeys(key for key, _, _ in _said(reader, stage))
            chosen = [
                key for part in dict.fromkeys(part for part, _ in asked) for key in _spread([k for k in asked if k[0] == part])
            ]
            found[benchmark] = {key: Answers(*key) for key in chosen}
        for key, gold, said in _said(reader, stage):
            entry = found[benchmark].get(key)
            if entry and all(name != stage.name for name, _, _ in entry.said):
                entry.gold = entry.gold or gold
                entry.said.append((stage.name, str(stage.settings.get("model", "")), said))
    return {benchmark: list(questions.values()) for benchmark, questions in found.items() if questions}


def _said(reader: Reader, stage: Stage) -> Iterator[tuple[tuple[str, str], str, str]]:
    """((part, question), right answer, what the model said) of every row of a stage's details that has these."""
    wanted = (*_QUESTION_COLUMNS, *_ANSWER_COLUMNS, *_GOLD_COLUMNS, *_PART_COLUMNS)
    for batch in reader.batches(stage, "details.parquet", wanted):
        names = batch.schema.names
        asked, said = _first(names, _QUESTION_COLUMNS), _first(names, _ANSWER_COLUMNS)
        if not asked or not said:
            return
        part, gold = _first(names, _PART_COLUMNS), _first(names, _GOLD_COLUMNS)
        for row in batch.to_pylist():
            key = str(row[part]) if part else "", as_text(row[asked])
            yield key, as_text(row[gold]) if gold else "", as_text(row[said])


def _spread(keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A few of them, from the first to the last."""
    count = min(_QUESTIONS, len(keys))
    return [keys[round(number * (len(keys) - 1) / max(1, count - 1))] for number in range(count)]


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)
