"""`tilth audit`: everything the unlearning protocol can ask of a model with the data at hand, as a page and as JSON.

Notable: it is a recipe of one stage made on the spot, so an audit that was cut off goes on, and what gold and before gave is found
again by the next audit that compares with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tilth.cli.life import ModelArgument, data_entry
from tilth.cli.options import Json, Out, Quiet, Seed, Set, With, import_methods, model_reference, pairs, values

_OWN = ("holdout", "real_authors", "world_facts", "forget_questions", "retain_questions", "shots")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(audit)


def audit(
    model: ModelArgument,
    forget: Annotated[str, typer.Option(help="What was to go: data as for DATA.")],
    retain: Annotated[str | None, typer.Option(help="What was to stay.", show_default=False)] = None,
    gold: Annotated[
        str | None,
        typer.Option(help="A model that never saw the forget set: what the audited one should be like.", show_default=False),
    ] = None,
    before: Annotated[str | None, typer.Option(help="The model before unlearning.", show_default=False)] = None,
    holdout: Annotated[
        str | None, typer.Option(help="Rows like the forget set that no model was trained on.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=DATA",
            help=f"Further data: {', '.join(_OWN[1:])}, or what a section's benchmark needs; repeatable.",
            show_default=False,
        ),
    ] = None,
    model_: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=MODEL",
            help="Further models: reference, or what a section's benchmark needs; repeatable.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="SECTION", help="Only this section; repeatable.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many rows of each set, evenly spread over it; 0: all.", min=0)] = 100,
    set_: Set = None,
    seed: Seed = 0,
    out: Out = None,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prove what a model forgot: runs every attack the data allow, writes a page for people and JSON for programs."""
    import_methods(with_)
    from tilth.cli.output import say
    from tilth.cli.running import go
    from tilth.recipe import Recipe
    from tilth.report.audit import write_audit

    named = {"forget": forget, "retain": retain, "holdout": holdout, **pairs(data, "--data")}
    sources = {name: data_entry(text) for name, text in named.items() if text}
    settings: dict[str, Any] = {name: name for name in sources if name in ("forget", "retain", *_OWN)}
    if further := {name: name for name in sources if name not in settings}:
        settings["extra"] = further
    models = {name: model_reference(place) for name, place in pairs(model_, "--model").items()}
    if "reference" in models:
        settings["reference"] = models.pop("reference")
    settings["further"] = models
    settings |= {name: model_reference(place) for name, place in (("gold", gold), ("before", before)) if place}
    settings |= {"limit": limit or None, "only": list(only or ()), **values(set_)}
    stage = {"evaluate": {"model": model_reference(model), "benchmark": {"audit": settings}}}
    recipe = Recipe.load({"name": "audit", "data": sources, "stages": {"audit": stage}})
    folder = out or Path("runs") / "audit"
    done = go(recipe, out=folder, seed=seed, quiet=quiet, as_json=as_json)
    page, kept = write_audit(done.stages["audit"], folder)
    say(f"Audit:  {page}\n        {kept}")
