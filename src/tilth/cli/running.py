"""Commands about recipes and runs: demo, run, claim, report, trace, recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilth.cli.options import Data, Json, Out, Quiet, Seed, Set, With, import_methods, pairs, values
from tilth.errors import TilthError

if TYPE_CHECKING:
    from tilth.recipe import Recipe
    from tilth.run import Run

Scale = Annotated[str, typer.Option(help="'cpu', or a scale the recipe names, such as 'gpu'.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(demo)
    app.command()(run)
    app.command()(claim)
    app.command()(report)
    app.command()(trace)
    recipes = typer.Typer(help="Show, check and describe recipes.", no_args_is_help=True)
    recipes.command("show")(show)
    recipes.command("check")(check)
    recipes.command("schema")(schema)
    recipes.command("list")(list_recipes)
    app.add_typer(recipes, name="recipe")


def go(recipe: Recipe, *, out: Path | None, seed: int, quiet: bool, as_json: bool, scale: str = "cpu") -> Run:
    """Execute, write the report, print the metrics: what every command that runs stages does."""
    from tilth.cli.output import say, table
    from tilth.cli.progress import progress
    from tilth.run import execute

    folder = out or Path("runs") / recipe.name
    first = os.environ.get("RANK", "0") == "0"  # of the processes torchrun started
    try:
        done = execute(recipe, seed=seed, out=folder, progress=progress(quiet=quiet or not first), scale=scale)
    finally:
        page = _report(folder) if first else None
    if not first:
        return done
    if as_json:
        print(json.dumps(done.record, indent=1, ensure_ascii=False))
    else:
        rows = [
            {"stage": s["name"], "kind": s["kind"], "metric": k, "value": v}
            for s in done.record["stages"]
            for k, v in s["metrics"].items()
        ]
        table(rows, as_json=False)
        say(f"\nReport: {page}")
    return done


def _report(folder: Path) -> Path | None:
    """A failed run gets its report too."""
    if not (folder / "run.json").exists():
        return None
    from tilth.report import write

    return write(folder)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("runs/demo"), seed: Seed = 0, quiet: Quiet = False
) -> None:
    """Raw text becomes a model, is measured, and forgets some people, with proof; about 4 minutes."""
    from tilth.cli.demo import demo as tour
    from tilth.cli.progress import progress

    tour(out, seed=seed, progress=progress(quiet=quiet))


def run(
    recipe: Annotated[str, typer.Argument(help="A file, or the name, number or key of a packaged recipe.")],
    set_: Set = None,
    data: Data = None,
    seed: Seed = 0,
    scale: Scale = "cpu",
    out: Out = None,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: every stage that was not run before."""
    import_methods(with_)
    from tilth.recipe import Recipe

    loaded = Recipe.load(recipe, overrides=values(set_), data=pairs(data, "--data"), scale=scale)
    go(loaded, out=out, seed=seed, quiet=quiet, as_json=as_json, scale=scale)


def claim(
    key: Annotated[str, typer.Argument(help="A system's number or key, or a recipe file; 'all' for every packaged claim.")],
    seeds: Annotated[int | None, typer.Option(help="How many seeds. [default: the claim's]", min=1, show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder for the evidence.")] = Path("evidence"),
    set_: Set = None,
    data: Data = None,
    scale: Scale = "cpu",
    jobs: Annotated[int, typer.Option(help="How many arms run at a time, each in a process of its own.", min=1)] = 1,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a claim: all arms, all seeds, a verdict, the evidence on disk."""
    modules = import_methods(with_)
    from tilth.claims.run import run_claim
    from tilth.cli.output import say, table
    from tilth.cli.progress import progress
    from tilth.recipe import Recipe, packaged

    rows: list[dict[str, Any]] = []
    for name in packaged() if key == "all" else [key]:
        recipe = Recipe.load(name, overrides=values(set_), data=pairs(data, "--data"), scale=scale)
        if recipe.claim is None:
            if key == "all":
                continue
            raise TilthError(f"recipe '{recipe.name}' makes no claim", hint="A claim is a section 'claim:' of a recipe.")
        path = run_claim(recipe, seeds=seeds, out=out, scale=scale, jobs=jobs, modules=modules, progress=progress(quiet=quiet))
        evidence = json.loads(path.read_text(encoding="utf-8"))
        say(f"{evidence['statement']}\n-> {evidence['verdict']}   ({path})")
        rows += [
            {"claim": recipe.name, "verdict": evidence["verdict"], **_flat(expectation)} for expectation in evidence["expect"]
        ]
    table(rows, as_json=as_json, columns=["claim", "expectation", "measured", "interval", "met"])


def _flat(expectation: Mapping[str, Any]) -> dict[str, Any]:
    return {**expectation, "expectation": expectation.get("sentence") or expectation.get("name") or expectation["metric"]}


def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Write the report of a run again."""
    from tilth.report import write
    from tilth.run import read_run

    read_run(folder)
    print(write(folder))


def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    where: Annotated[str, typer.Option(help="Which rows, as an SQL predicate: \"id = 'a.py'\".")],
    limit: Annotated[int, typer.Option(help="At most this many rows per stage.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """At which steps did training read these rows, and which checkpoint is the last one clean of them?"""
    from tilth.cli.output import table
    from tilth.tracing import trace_run

    table(
        trace_run(folder, where, limit),
        as_json=as_json,
        columns=["stage", "row", "times", "first_step", "last_step", "clean_checkpoint"],
    )


def list_recipes(as_json: Json = False) -> None:
    """The packaged recipes."""
    from tilth.cli.output import table
    from tilth.recipe import PACKAGED, packaged, read_yaml

    rows = []
    for name in packaged():
        tree, _ = read_yaml(PACKAGED / f"{name}.yaml")
        rows.append(
            {"recipe": name, "summary": tree.get("summary", ""), "stages": list(tree["stages"]), "claim": "claim" in tree}
        )
    table(rows, as_json=as_json, columns=["recipe", "summary"])


def show(recipe: str) -> None:
    """Print a recipe's YAML."""
    from tilth.recipe import find_recipe

    print(find_recipe(recipe).read_text(encoding="utf-8"), end="")


def check(recipe: str, set_: Set = None, data: Data = None, scale: Scale = "cpu", with_: With = None) -> None:
    """Check a recipe whole: settings, references, data, and every arm of its claim."""
    import_methods(with_)
    from tilth.recipe import Recipe
    from tilth.run import check_run

    overrides, sources = values(set_), pairs(data, "--data")
    loaded = Recipe.load(recipe, overrides=overrides, data=sources, scale=scale)
    check_run(loaded)
    arms = loaded.claim.arms if loaded.claim else {}
    for arm, changes in arms.items():
        try:
            check_run(Recipe.load(recipe, overrides={**changes, **overrides}, data=sources, scale=scale))
        except TilthError as error:
            raise TilthError(error.what, where=f"arm '{arm}', {error.where}", hint=error.hint) from None
    print(f"{loaded.name}: {len(loaded.stages)} stages, {len(arms)} arms, in order: {', '.join(loaded.stages)}")


def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from tilth.recipe import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=1))
