"""The command for exact forgetting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilth.cli.options import Json, Quiet, With, import_methods


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(forget)


def forget(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    where: Annotated[str, typer.Option(help="Which rows, as an SQL predicate: \"source = 'x'\".")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the new models. [default: RUN-forgotten]", show_default=False)
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete tainted stages and old versions of the data instead of marking them.")
    ] = False,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Forget rows exactly: back to the last checkpoint clean of them, and on without them."""
    import_methods(with_)
    from tilth.cli.output import say, table
    from tilth.cli.progress import progress
    from tilth.forgetting import forget_rows

    target = out or folder.with_name(f"{folder.name}-forgotten")
    said = forget_rows(folder, where, target, progress=progress(quiet=quiet), purge=purge)
    columns = ["stage", "rows", "first_step", "clean_step", "redone", "steps", "seconds", "verified"]
    table([said] if as_json else said["models"], as_json=as_json, columns=columns)
    if as_json:
        return
    for corpus in said["corpora"]:
        say(
            f"deleted {corpus['rows']} rows from {corpus['uri']} (version {corpus['version_before']} -> {corpus['version_after']})"
        )
    for name in said["tainted"]:
        say(f"{'deleted' if purge else 'marked as tainted'}: what stage '{name}' had made")
    for line in said["kept"]:
        say(f"note: {line}")
    say(f"note: the sources themselves were not changed: {', '.join(said['sources'])}")
    say(f"Models: {target}   Record: {target / 'forgotten.json'}")
