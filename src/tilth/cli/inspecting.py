"""Commands that only look: systems, methods."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from tilth.cli.options import Json, With, import_methods


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(systems)
    app.command()(methods)


def systems(as_json: Json = False) -> None:
    """The 97 published systems: what is there, what was measured."""
    from tilth.claims.systems import systems as rows
    from tilth.cli.output import say, table

    found = rows()
    table(found, as_json=as_json, columns=["number", "key", "verdict", "stages", "methods", "title"])
    if not as_json:
        counts = {
            verdict: sum(row["verdict"] == verdict for row in found)
            for verdict in ("planned", "runs", "holds", "fails", "inconclusive")
        }
        say("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))


def methods(
    kind: Annotated[str | None, typer.Option(help="Only this kind.", show_default=False)] = None,
    name: Annotated[str | None, typer.Argument(help="Only this method, with its settings.", show_default=False)] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Only methods that need no labels, of this family; 'all': of every one.", show_default=False),
    ] = None,
    with_: With = None,
    as_json: Json = False,
) -> None:
    """Every registered method: kind, shape, systems, one line, settings with types and defaults.

    With --family: what each learns from, what keeps it from collapse, whether it needs a teacher or a queue.
    """
    import_methods(with_)
    from tilth.cli.output import say, table
    from tilth.errors import TilthError, nearest
    from tilth.registry import entries

    found = [entry for entry in entries(kind) if name in (None, entry.name)]
    if not found:
        known = [entry.name for entry in entries(kind)] if name else sorted({entry.kind for entry in entries()})
        raise TilthError(
            f"there is no method '{name}'" if name else f"there is no kind '{kind}'", hint=nearest(name or kind or "", known)
        )
    rows = [describe(entry.kind, entry.name) for entry in found]
    if family:
        rows = of_family(rows, family)
        if not as_json:
            table(
                [{"name": row["name"], **{key: _told(value) for key, value in row["traits"].items()}} for row in rows],
                as_json=False,
                columns=["family", "name", *[key for key in rows[0]["traits"] if key != "family"]],
            )
            return
    if not as_json and (name or len(rows) == 1):
        for row in rows:
            say(f"{row['kind']} {row['name']} ({row['shape']}): {row['summary']}")
            if row["traits"]:
                say("; ".join(f"{key}: {_told(value)}" for key, value in row["traits"].items() if _told(value)))
            table(row["settings"], as_json=False, columns=["setting", "type", "default"])
        return
    table(
        [
            {**row, "settings": row["settings"] if as_json else [f"{s['setting']}={s['default']}" for s in row["settings"]]}
            for row in rows
        ],
        as_json=as_json,
        columns=["kind", "name", "shape", "systems", "summary", "settings"],
    )


def of_family(rows: list[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """Of methods as rows those with traits, of one family ('all': any), by family; TilthError names the families."""
    from tilth.errors import TilthError, nearest

    having = [row for row in rows if row["traits"]]
    found = [row for row in having if family in ("all", row["traits"]["family"])]
    if not found:
        known = sorted({row["traits"]["family"] for row in having})
        hint = nearest(family, known) if known else "Families are of pre-training without labels: --kind pretrain."
        raise TilthError(f"none of these methods is of the family '{family}'", hint=hint)
    return sorted(found, key=lambda row: (row["traits"]["family"], row["name"]))


def describe(kind: str, name: str) -> dict[str, Any]:
    """A method as a row: its settings come from its constructor."""
    from tilth import contracts
    from tilth.registry import find, plain, settings_of

    cls = find(kind, name)
    shapes = (
        "Step",
        "Backbone",
        "Objective",
        "Schedule",
        "Reparametrisation",
        "Estimator",
        "Edit",
        "Guard",
        "Benchmark",
        "Stage",
    )
    shape = next((s for s in shapes if issubclass(cls, getattr(contracts, s))), "")
    settings = []
    for key, field in settings_of(cls).model_fields.items():
        default = "required" if field.is_required() else plain(field.get_default(call_default_factory=True))
        settings.append({"setting": key, "type": _type(field), "default": default})
    summary = (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""
    traits = getattr(cls, "traits", None)
    return {
        "kind": kind,
        "name": name,
        "shape": shape,
        "systems": list(cls.systems),  # type: ignore[attr-defined]
        "summary": summary,
        "traits": asdict(traits) if traits else {},
        "settings": settings,
    }


def _told(value: str | bool) -> str:
    """A trait for people: nothing where there is none."""
    return "yes" if value is True else "" if value in (False, "none") else str(value)


def _type(field: Any) -> str:
    """'float, > 0', 'unlearn method', 'corpus'."""
    from tilth.registry import Kind, Reference

    for mark in field.metadata:
        if isinstance(mark, Kind):
            return f"{mark.kind} method"
        if isinstance(mark, Reference):
            return mark.gives
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    for noise in ("typing.", "tilth.registry.", "collections.abc."):
        text = text.replace(noise, "")
    bounds = [f"{sign} {getattr(mark, key):g}" for mark in field.metadata for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")) if hasattr(mark, key)]  # fmt: skip
    return ", ".join([text, *bounds])
