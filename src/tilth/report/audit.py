"""The page of an audit: `audit.json` as one HTML file that someone who knows nothing of models can read.

Notable: the page is made of the JSON alone, so whoever has the JSON can make the page again and check every sentence of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tilth.errors import TilthError
from tilth.evaluate.audit.audit import FILE
from tilth.report.figures import Curves, draw
from tilth.report.page import templates

WHO = {
    "model": "audited model",
    "without guard": "with the guard dropped",
    "before": "before unlearning",
    "gold": "gold: never saw it",
}
"""The models of an audit, in the order of the columns."""

VERDICTS = {
    "remains": "more than gold",
    "like gold": "like gold",
    "below gold": "less than gold",
    "unlike gold": "unlike gold",
    "fell": "fell",
    "did not fall": "did not fall",
    "kept": "kept",
    "lost": "lost",
    "open": "not judged",
}


def write_audit(stage: Path, out: Path) -> tuple[Path, Path]:
    """Write out/audit.html and out/audit.json from the folder of a stage that ran the benchmark 'audit'; gives both paths."""
    source = stage / FILE
    if not source.is_file():
        raise TilthError(f"'{stage}' holds no audit", hint=f"It has no {FILE}; run: tilth audit MODEL --forget DATA")
    out.mkdir(parents=True, exist_ok=True)
    page, kept = out / "audit.html", out / FILE
    if not kept.exists() or not kept.samefile(source):
        shutil.copyfile(source, kept)
    partial = page.with_name(page.name + ".partial")
    partial.write_text(render(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
    partial.replace(page)
    return page, kept


def render(about: dict[str, Any]) -> str:
    """The page as a string; about: what `audit.json` holds."""
    curves = {section["name"]: _curves(section) for section in about["sections"]}
    used = {who for section in about["sections"] for row in section["measures"] for who in row["values"]}
    return (
        templates()
        .get_template("audit.html.j2")
        .render(
            about=about,
            who={name: title for name, title in WHO.items() if name in used},
            verdicts=VERDICTS,
            curves=curves,
            measured=[section for section in about["sections"] if section["status"] == "measured"],
            absent=[section for section in about["sections"] if section["status"] != "measured"],
        )
    )


def _curves(section: dict[str, Any]) -> Curves | None:
    named = {WHO.get(who, who): points for who, points in section["curves"].items()}
    return draw(f"{section['title']}: probability of what was not shown", named, x="steps", y="probability") if named else None
