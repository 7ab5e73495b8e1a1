"""The page: sections into one HTML file.

Notable: everything a run says is text to Jinja2, which escapes it; the page's own policy forbids scripts and the network, so
that nothing in a corpus or an answer can become more than text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tilth.report import measured, sections
from tilth.report.glossary import ARROWS
from tilth.report.reading import Reader, is_number, seconds
from tilth.report.words import done, duration, number, plural, safe, short, short_number, words

_FOLDED = 320  # characters: longer texts are folded
_FACTS = ("tilth", "seed", "scale", "started", "commit", "file")
_ABOUT_DATA = ("name", "rows", "source", "where", "licence", "fingerprint")
_SHOWN = 20_000  # characters: of longer texts the rest is left out, and said so


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the run in `folder` to `out` (folder/report.html) and return its path."""
    html = render(Reader.open(folder))
    path = out or folder / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def render(reader: Reader) -> str:
    """The page as a string."""
    record, stages = reader.record, reader.stages()
    given = {stage.name: reader.lines(stage, "exhibits.jsonl") for stage in stages}
    curation = sections.curation(reader, stages, given)
    curated = {one.stage.name: one for one in curation}
    answers = measured.answers(reader, stages)
    exhibits: dict[str, list[sections.Exhibit]] = {}
    for stage in stages:
        for exhibit in given[stage.name]:
            if stage.name in curated and sections.is_step_table(exhibit):
                continue
            if stage.name in curated and curated[stage.name].removed and sections.repeats_removed(exhibit):
                continue
            shown = sections.exhibit(reader, stage, exhibit)
            if shown:
                exhibits.setdefault(stage.name, []).append(shown)
    rows = sum(int(entry["rows"]) for entry in _sources(reader))
    tree = reader.mapping("tree")
    return templates().get_template("report.html.j2").render(
        title=str(record.get("recipe") or "run"),
        summary=str(record.get("summary") or ""),
        done=done(stages, rows),
        **{name: str(record.get(name, "")) if record.get(name) is not None else "" for name in _FACTS},
        status=_status(record),
        failed=_failed(reader),
        total=seconds(record.get("seconds")),
        stages=stages,
        timeline=sections.timeline(stages),
        headlines=sections.headlines(stages),
        curation=curation,
        training=sections.training(reader, stages),
        answers=answers,
        answered={name for questions in answers.values() for one in questions for name, _, _ in one.said},
        audits=measured.audits(stages),
        exhibits=exhibits,
        arrows=ARROWS,
        data=[{**dict.fromkeys(_ABOUT_DATA), **entry} for entry in reader.entries("data")],
        hardware=_hardware(reader.mapping("hardware")),
        versions=reader.mapping("versions"),
        recipe=_yaml(tree) if tree else "",
        problems=reader.problems,
    )  # fmt: skip


def templates() -> Environment:
    """Jinja2 over this room's templates: everything escaped, numbers and durations as filters."""
    environment = Environment(
        loader=PackageLoader("tilth.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else safe(value),
    )
    environment.filters |= {
        "number": number,
        "short_number": short_number,
        "duration": duration,
        "words": words,
        "short": short,
        "yaml": _yaml,
    }
    environment.globals |= {"plural": plural, "is_number": is_number, "FOLDED": _FOLDED, "SHOWN": _SHOWN}
    return environment


def _sources(reader: Reader) -> list[dict[str, Any]]:
    """Entries of data that are not parts of others: one per source, the largest."""
    largest: dict[Any, dict[str, Any]] = {}
    for entry in reader.entries("data"):
        if is_number(entry.get("rows")):
            key = str(entry.get("source"))
            largest[key] = max(largest.get(key, entry), entry, key=lambda one: one["rows"])
    return list(largest.values())


def _status(record: dict[str, Any]) -> str:
    return "failed" if record.get("failed") else "finished" if record.get("finished") else "unfinished"


def _failed(reader: Reader) -> dict[str, str]:
    """stage and what of a failure; empty without one."""
    failed = reader.record.get("failed")
    if isinstance(failed, dict):
        return {"stage": str(failed.get("stage") or ""), "what": str(failed.get("what") or "")}
    return {"stage": "", "what": str(failed)} if failed else {}


def _hardware(given: dict[str, Any]) -> str:
    """'AMD EPYC, 2 cores, 23.5 GiB' in words; empty when it is not known."""
    parts = [str(given["cpu"])] if given.get("cpu") else []
    parts += [plural(given["cores"], "core")] if isinstance(given.get("cores"), int) else []
    parts += [f"{given['memory_gib']} GiB of memory"] if is_number(given.get("memory_gib")) else []
    gpus = given.get("gpu")
    return ", ".join([*parts, *(map(str, gpus) if isinstance(gpus, list) else [])])


def _yaml(value: Any) -> str:
    """Settings as people read them."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip() if value else ""
