"""A run's folder as plain values, whatever state it was left in.

Notable: nothing here raises because a piece is missing or broken; what could not be read is said in `problems`, which the
report shows. Only a folder without run.json is refused, since then there is nothing to report on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tilth.errors import TilthError

_CELL = 20_000  # characters of a text that are kept; the rest stays in the run's folder


@dataclass
class Stage:
    """A stage as run.json has it. folder: where its files are, None when it is gone."""

    name: str
    kind: str
    gives: str
    seconds: float
    cached: bool
    settings: dict[str, Any]
    metrics: dict[str, float]
    folder: Path | None


@dataclass
class Reader:
    """Reads the files of one run. problems: sentences on what could not be read."""

    folder: Path
    record: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    @staticmethod
    def open(folder: Path) -> Reader:
        """Read run.json; TilthError if there is none or it is not one."""
        path = folder / "run.json"
        hint = "Give the --out folder of an earlier 'tilth run'."
        if not path.is_file():
            raise TilthError("this is not the folder of a run: it has no run.json", where=str(folder), hint=hint)
        try:
            record = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise TilthError(f"run.json cannot be read: {error}", where=str(path), hint=hint) from None
        if not isinstance(record, dict):
            raise TilthError("run.json is not a record of a run", where=str(path), hint=hint)
        return Reader(folder, record)

    def mapping(self, key: str) -> dict[str, Any]:
        """An entry of the record that is a mapping; empty if it is not there."""
        value = self.record.get(key)
        return value if isinstance(value, dict) else {}

    def entries(self, key: str) -> list[dict[str, Any]]:
        """An entry of the record that is a list of mappings; empty if it is not there."""
        value = self.record.get(key)
        return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []

    def stages(self) -> list[Stage]:
        """The stages that were finished, in the order they ran."""
        return [self._stage(number, entry) for number, entry in enumerate(self.entries("stages"), start=1)]

    def _stage(self, number: int, entry: Mapping[str, Any]) -> Stage:
        name = str(entry.get("name") or f"stage {number}")
        places = [self.folder / name, *([Path(entry["folder"])] if isinstance(entry.get("folder"), str) else [])]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            self.problems.append(f"The folder of stage '{name}' is gone: its curves, examples and tables are missing here.")
        metrics = entry.get("metrics")
        settings = entry.get("settings")
        return Stage(
            name,
            str(entry.get("kind") or ""),
            str(entry.get("gives") or ""),
            seconds(entry.get("seconds")),
            bool(entry.get("cached")),
            settings if isinstance(settings, dict) else {},
            {str(key): float(value) for key, value in metrics.items() if is_number(value)} if isinstance(metrics, dict) else {},
            folder,
        )

    def lines(self, stage: Stage, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file in a stage's folder; lines cut off by a kill are counted and left out."""
        path = stage.folder / name if stage.folder else None
        if path is None or not path.is_file():
            return []
        found, broken = [], 0
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                if isinstance(value, dict):
                    found.append(value)
                elif line.strip():
                    broken += 1
        if broken:
            self.problems.append(f"{broken} line{'s' * (broken > 1)} of {stage.name}/{name} could not be read.")
        return found

    def batches(self, stage: Stage, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Record batches of a Parquet file in a stage's folder; none if it is missing. columns: those of them that exist."""
        path = stage.folder / name if stage.folder else None
        if path is None or not path.is_file():
            return
        try:
            file = pq.ParquetFile(path)
            known = file.schema_arrow.names
            yield from file.iter_batches(4096, columns=[c for c in columns if c in known] if columns else None)
        except (pa.ArrowException, OSError) as error:
            self.problems.append(f"{stage.name}/{name} could not be read: {str(error).splitlines()[0]}")


@dataclass
class Removed:
    """Rows that curation removed. reasons: (step, reason, rows), most frequent first; examples: step, reason, row, text."""

    total: int
    reasons: list[tuple[str, str, int]]
    examples: list[dict[str, str]]


def removed_rows(reader: Reader, stage: Stage, *, reasons: int = 8, each: int = 2) -> Removed | None:
    """Counts and examples of the rows in a stage's removed.parquet; None if it has none.

    Reasons that differ in what is particular to a row (a number, another row's id) count as one; the examples have them in
    full. reasons: how many of the most frequent get examples, `each` of them.
    """
    counts: Counter[tuple[str, str]] = Counter()
    samples: dict[tuple[str, str], list[dict[str, str]]] = {}
    for batch in reader.batches(stage, "removed.parquet"):
        if "removed" not in batch.schema.names:
            reader.problems.append(f"{stage.name}/removed.parquet says no reasons.")
            return None
        why = batch["removed"].to_pylist()
        steps = batch["step"].to_pylist() if "step" in batch.schema.names else [None] * len(why)
        for number, key in enumerate(_kind_of_reason(reason, step) for reason, step in zip(why, steps, strict=True)):
            counts[key] += 1
            if counts[key] <= each and len(samples) < 50 * reasons:
                row = batch.slice(number, 1).to_pylist()[0]
                shown = {"step": key[0], "reason": str(why[number]), "row": str(row.get("id", "")), "text": _content(row)}
                samples.setdefault(key, []).append(shown)
    if not counts:
        return None
    # A step whose reasons are all different (they name something without a digit) is counted as one.
    phrases = Counter(step for step, _ in counts)
    merged: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[dict[str, str]]] = {}
    for (step, phrase), rows in counts.items():
        key = (step, phrase if phrases[step] <= 2 * reasons else "")
        merged[key] += rows
        examples[key] = (examples.get(key, []) + samples.get((step, phrase), []))[:each]
    common = merged.most_common()
    listed = [(step, phrase, rows) for (step, phrase), rows in common]
    by_turns = [examples[key][turn] for turn in range(each) for key, _ in common[:reasons] if turn < len(examples[key])]
    return Removed(merged.total(), listed, by_turns)


def _kind_of_reason(reason: Any, step: Any) -> tuple[str, str]:
    """('exact_dedup: same text as lib/os.py', 'exact_dedup') -> ('exact_dedup', 'same text as …')."""
    before, colon, after = str(reason).partition(":")
    step = before if step is None and colon else str(step or "")
    phrase = after if colon and before == step else str(reason)
    said = phrase.split()
    after_numbers = list(dropwhile(lambda word: not _is_word(word), said))
    common = list(takewhile(_is_word, after_numbers))
    return step, " ".join(common).rstrip(",;") + (" …" if common and len(common) < len(said) else "") or "other"


def _is_word(token: str) -> bool:
    return token.strip(",;()").replace("-", "").isalpha()


def _content(row: Mapping[str, Any]) -> str:
    """What a row says: its text, or question and answer, or whatever strings it has."""
    for columns in (("text",), ("question", "answer")):
        if any(isinstance(row.get(column), str) for column in columns):
            return "\n".join(str(row[column]) for column in columns if row.get(column) is not None)[:_CELL]
    return "\n".join(
        f"{key}: {value}" for key, value in row.items() if key not in ("id", "removed", "step") and is_scalar(value)
    )[:_CELL]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number (booleans are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_scalar(value: Any) -> bool:
    """Whether a JSON value can be shown in a cell."""
    return value is not None and isinstance(value, (str, int, float, bool))


def seconds(value: Any) -> float:
    """A duration as recorded; 0 where there is none."""
    return float(value) if is_number(value) and value >= 0 else 0.0


def as_text(value: Any) -> str:
    """A text cell: lists line by line, nothing for what is missing."""
    return "" if value is None else "\n".join(map(str, value)) if isinstance(value, list) else str(value)
