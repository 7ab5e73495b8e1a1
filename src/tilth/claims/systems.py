"""The 97 published systems: what is registered, packaged and measured for each.

Notable: nothing here is typed in by hand but the list itself (systems.csv); methods come from the index, recipes from the
package, verdicts from evidence files.
"""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

from tilth.errors import TilthError
from tilth.index import index
from tilth.recipe import packaged

VERDICTS = ("holds", "fails", "inconclusive")
_PACKAGE = Path(__file__).parents[1]


@cache
def published() -> dict[int, dict[str, str]]:
    """number -> key, title, stages (separated by ';'), modality, family of each published system."""
    with (Path(__file__).parent / "systems.csv").open(encoding="utf-8", newline="") as file:
        return {int(row["number"]): row for row in csv.DictReader(file)}


def evidence_name(number: int) -> str:
    """'33-npo' for 33: what its recipe and its evidence are called."""
    if number not in published():
        raise TilthError(f"there is no system {number}", hint=f"Systems have the numbers 1 to {max(published())}.")
    return f"{number:02d}-{published()[number]['key']}"


def systems(evidence: Path | None = None) -> list[dict[str, Any]]:
    """One entry per system: number, key, title, stages, methods, recipe, verdict, evidence.

    methods: registered names; recipe: name of the packaged recipe or None; evidence: path of its file or None.
    verdict: 'holds', 'fails', 'inconclusive' as the evidence says; without evidence 'runs' if there is a recipe, else
    'planned'. evidence: the folder to look in; without it ./evidence, then what came with the package.
    """
    methods: dict[int, set[str]] = {}
    for entry in index().values():
        for number in entry.systems:
            methods.setdefault(number, set()).add(entry.name)
    recipes = set(packaged())
    table = []
    for number, row in published().items():
        name = evidence_name(number)
        found = find_evidence(name, evidence)
        table.append(
            {
                "number": number,
                "key": row["key"],
                "title": row["title"],
                "stages": row["stages"].split(";"),
                "methods": sorted(methods.get(number, ())),
                "recipe": name if name in recipes else None,
                "verdict": read_verdict(found) if found else "runs" if name in recipes else "planned",
                "evidence": str(found) if found else None,
            }
        )
    return table


def find_evidence(name: str, folder: Path | None = None) -> Path | None:
    """The evidence file called `name`, in `folder`, or in ./evidence and then beside the package."""
    folders = [folder] if folder else [Path("evidence"), _PACKAGE / "evidence", _PACKAGE.parents[1] / "evidence"]
    return next((path for path in (where / f"{name}.json" for where in folders) if path.is_file()), None)


def read_verdict(path: Path) -> str:
    """The verdict an evidence file holds. Raises TilthError if it is not one."""
    try:
        verdict = json.loads(path.read_text(encoding="utf-8")).get("verdict")
    except (ValueError, AttributeError) as error:
        raise TilthError(
            f"this is not an evidence file: {error}", where=str(path), hint="Make it again with 'tilth claim'."
        ) from None
    if verdict not in VERDICTS:
        raise TilthError(f"'{verdict}' is not a verdict", where=str(path), hint="Make it again with 'tilth claim'.")
    return str(verdict)
