"""Commands that only look: systems, methods."""

from __future__ import annotations

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
    with_: With = None,
    as_json: Json = False,
) -> None:
    """Every registered method: kind, shape, systems, one line, settings with types and defaults."""
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
    if not as_json and (name or len(rows) == 1):
        for row in rows:
            say(f"{row['kind']} {row['name']} ({row['shape']}): {row['summary']}")
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
    return {"kind": kind, "name": name, "shape": shape, "systems": list(cls.systems), "summary": summary, "settings": settings}  # type: ignore[attr-defined]


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
