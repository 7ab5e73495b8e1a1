"""What the page shows, gathered from a run's files: one function per section, each giving nothing when there is nothing.

Notable: what a stage exhibits is shown as it is, in the order it was exhibited, unless a section shows the same better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilth.report.figures import Curves, draw
from tilth.report.measured import benchmark_of
from tilth.report.reading import Reader, Removed, Stage, as_text, is_number, removed_rows
from tilth.report.words import words

_CLOCKS = {"parts", "step", "tokens", "samples", "epoch", "epochs", "seconds", "time"}
_LOSSES: tuple[str, ...] = ("training", "held out")
_CURVES, _ROWS = 12, 200  # series of a figure, rows of a table


@dataclass(frozen=True)
class Bar:
    """A stage on the time line. start, width: shares of the whole in per cent."""

    stage: Stage
    start: float
    width: float


def timeline(stages: Sequence[Stage]) -> list[Bar]:
    """The stages one after the other, as long as they took when they were computed."""
    total = sum(stage.seconds for stage in stages) or 1.0
    bars, start = [], 0.0
    for stage in stages:
        width = 100 * stage.seconds / total
        bars.append(Bar(stage, round(start, 3), round(width, 3)))
        start += width
    return bars


@dataclass(frozen=True)
class Curation:
    """What a curating stage kept and removed. steps: name, kept, removed, changed and kept's share of the first in per cent."""

    stage: Stage
    steps: list[dict[str, Any]]
    removed: Removed | None


def curation(reader: Reader, stages: Sequence[Stage], exhibits: Mapping[str, list[dict[str, Any]]]) -> list[Curation]:
    """Every stage that tells step by step what it kept, or leaves removed rows behind."""
    found = []
    for stage in stages:
        steps = next((_steps(exhibit) for exhibit in exhibits.get(stage.name, []) if is_step_table(exhibit)), [])
        removed = removed_rows(reader, stage)
        if steps or removed:
            found.append(Curation(stage, steps, removed))
    return found


def is_step_table(exhibit: Mapping[str, Any]) -> bool:
    """Whether an exhibit is the table of what each step of curation did."""
    return exhibit.get("kind") == "table" and {"step", "kept", "removed"} <= set(_texts(exhibit.get("columns")))


def repeats_removed(exhibit: Mapping[str, Any]) -> bool:
    """Whether an exhibit lists removed rows without their content, which the curation section shows better."""
    return exhibit.get("kind") == "examples" and _texts(exhibit.get("columns")) == ["row", "reason"]


def _steps(exhibit: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = _texts(exhibit.get("columns"))
    rows = [dict(zip(columns, row)) for row in exhibit.get("rows") or [] if isinstance(row, list)]
    rows = [row for row in rows if is_number(row.get("kept")) and is_number(row.get("removed"))]
    whole = max([row["kept"] + row["removed"] for row in rows], default=0) or 1
    return [
        {**row, "kept_share": 100 * row["kept"] / whole, "removed_share": 100 * row["removed"] / whole}
        for row in rows
    ]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The curves of a stage that trained."""

    stage: Stage
    curves: list[Curves]


def training(reader: Reader, stages: Sequence[Stage]) -> list[Trained]:
    """Loss, held-out loss, learning rate and whatever else each training stage logged."""
    found = []
    for stage in stages:
        series = logged(reader.lines(stage, "log.jsonl"))
        losses = {name: series[name] for name in _LOSSES if name in series}
        curves = [draw("Loss", losses, x="step", smooth="training")]
        parts = {name: points for name, points in series.items() if name.startswith("part: ")}
        renamed = {name.removeprefix("part: "): points for name, points in parts.items()}
        if len(parts) > 1:
            curves.append(draw("Parts of the loss", renamed, x="step"))
        elif not all(_is_multiple(points, series.get("training", [])) for points in parts.values()):
            curves += [draw(name.capitalize(), {name: points}, x="step") for name, points in renamed.items()]
        rest = {name: points for name, points in series.items() if name not in losses and name not in parts}
        titles = {"lr": "Learning rate"}
        curves += [
            draw(titles.get(name, words(name).capitalize()), {words(name): points}, x="step") for name, points in rest.items()
        ]
        drawn = [curve for curve in curves if curve]
        if drawn:
            found.append(Trained(stage, drawn))
    return found


def logged(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """name -> [[step, value]] of a training log; 'loss' is called 'training', parts of the loss 'part: NAME'."""
    series: dict[str, list[list[float]]] = {}
    for number, line in enumerate(lines, start=1):
        step = line.get("step", number)
        parts = line.get("parts")
        flat = {key: value for key, value in line.items() if key not in _CLOCKS}
        if isinstance(parts, dict):
            flat.update({f"part: {words(key)}": value for key, value in parts.items()})
        for key, value in flat.items():
            if is_number(value) and is_number(step):
                name = {"loss": "training", "held_out_loss": "held out"}.get(key, key)
                series.setdefault(name, []).append([float(step), float(value)])
    return series


def _is_multiple(points: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> bool:
    """Whether a part of the loss is the loss in another unit (bits instead of nats), and so not worth a figure."""
    loss = {point[0]: point[1] for point in losses}
    ratios = [value / loss[step] for step, value in points if loss.get(step)]
    return len(ratios) == len(points) and max(ratios) - min(ratios) <= 1e-3 * abs(max(ratios))


@dataclass(frozen=True)
class Exhibit:
    """Something a stage wanted shown, ready for the page."""

    stage: Stage
    kind: str
    title: str
    content: dict[str, Any]


def exhibit(reader: Reader, stage: Stage, given: Mapping[str, Any]) -> Exhibit | None:
    """An exhibit as the page wants it; None with a problem noted when it is not what its kind says."""
    kind, title = str(given.get("kind")), str(given.get("title") or "")
    columns, rows = _texts(given.get("columns")), given.get("rows")
    if kind in ("table", "examples") and isinstance(rows, list):
        cells = [row if isinstance(row, list) else [row] for row in rows]
        numeric = [
            bool(cells) and all(is_number(row[i]) or row[i] is None for row in cells if i < len(row)) for i in range(len(columns))
        ]
        content = {"columns": columns, "rows": cells[:_ROWS], "numeric": numeric, "more": len(cells) - len(cells[:_ROWS])}
        return Exhibit(stage, kind, title, {**content, "note": as_text(given.get("note", ""))})
    if kind == "curves" and isinstance(given.get("series"), dict):
        points = all(isinstance(line, list) and len(line) == 1 for line in given["series"].values())
        shown = _ROWS if points else _CURVES
        series = {str(k): v for k, v in list(given["series"].items())[:shown] if isinstance(v, list)}
        axes = {"x": str(given.get("x") or ""), "y": str(given.get("y") or "")}
        curves = draw(title, series, **axes, log=bool(given.get("log")))
        if curves:
            return Exhibit(stage, kind, title, {"curves": curves, "more": max(0, len(given["series"]) - shown)})
    if kind == "picture" and _base64(given.get("png")):
        return Exhibit(stage, kind, title, {"png": given["png"], "note": as_text(given.get("note", ""))})
    if kind == "note" and given.get("text"):
        return Exhibit(stage, kind, title, {"text": str(given["text"])})
    reader.problems.append(f"An exhibit of stage '{stage.name}' ({kind}: {title or 'untitled'}) is empty or not of its kind.")
    return None


def _base64(value: Any) -> bool:
    """Whether it is a PNG in base64 and nothing else, so that it can stand in a page."""
    return isinstance(value, str) and value.startswith("iVBOR") and re.fullmatch(r"[A-Za-z0-9+/=]+", value) is not None


@dataclass(frozen=True)
class Headline:
    """A figure worth a tile. value: after `before`, where it was changed on purpose; where: which stage or stages."""

    name: str
    value: float
    where: str
    before: float | None = None


def headlines(stages: Sequence[Stage]) -> list[Headline]:
    """At most six figures that say most about the run."""
    found = [_of_stages(stages, name, where) for name, where in (("kept", "rows kept"), ("tokens", "tokens learnt from"))]
    found.append(max(filter(None, [_last([stage], "parameters") for stage in stages]), key=lambda one: one.value, default=None))
    found += [_last(stages, name) for name in ("perplexity", "accuracy", "exact_match")]
    found += [_changed(stages, name) for name in ("forget_probability", "retain_probability", "model_utility")]
    return [headline for headline in found if headline][:6]


def _of_stages(stages: Sequence[Stage], metric: str, name: str) -> Headline | None:
    """A metric summed over the stages that have it (rows kept: of the last)."""
    having = [stage for stage in stages if metric in stage.metrics]
    if not having:
        return None
    if metric == "kept":
        last = having[-1].metrics
        return Headline(name, last["kept"], having[-1].name, last.get("rows"))
    where = having[0].name if len(having) == 1 else f"in {len(having)} stages"
    return Headline(name, sum(stage.metrics[metric] for stage in having), where)


def _last(stages: Sequence[Stage], metric: str) -> Headline | None:
    having = [stage for stage in stages if metric in stage.metrics]
    return Headline(metric, having[-1].metrics[metric], having[-1].name) if having else None


def _changed(stages: Sequence[Stage], metric: str) -> Headline | None:
    """What unlearning changed: of the first unlearnt model that is measured like the model it was made from."""
    measured = {str(stage.settings.get("model")): stage for stage in stages if metric in stage.metrics}
    for stage in stages:
        origin = str(stage.settings.get("model"))
        if stage.kind == "unlearn" and stage.name in measured and origin in measured:
            before, after = measured[origin], measured[stage.name]
            if benchmark_of(before) == benchmark_of(after):
                return Headline(metric, after.metrics[metric], f"{origin} → {stage.name}", before.metrics[metric])
    return _last(stages, metric) if len(measured) == 1 else None


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
