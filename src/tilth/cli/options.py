"""Options that several commands share, and reading NAME=VALUE pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tilth.errors import TilthError

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Out = Annotated[Path | None, typer.Option(help="Folder for the result. [default: runs/NAME]", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a setting; repeatable.", show_default=False)
]
Data = Annotated[
    list[str] | None, typer.Option("--data", metavar="NAME=PATH", help="Use your own data; repeatable.", show_default=False)
]
With = Annotated[list[str] | None, typer.Option("--with", metavar="MODULE", help="Import your module of methods first; repeatable.", show_default=False)]  # fmt: skip


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """['a=b'] -> {'a': 'b'}."""
    found = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise TilthError(f"'{text}' is not NAME=VALUE", where=option)
        found[name] = value
    return found


def values(given: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Like `pairs`, the values read as YAML: numbers, true, null, [lists], {mappings}."""
    import yaml

    try:
        return {name: yaml.safe_load(text) for name, text in pairs(given, option).items()}
    except yaml.YAMLError as error:
        raise TilthError(f"a value is not valid YAML: {error}", where=option) from None


def import_methods(modules: list[str] | None) -> list[str]:
    """Import the user's own modules, found in the working folder or installed, so that their methods are registered; their names."""
    import importlib
    import sys

    if modules:
        sys.path.insert(0, str(Path.cwd()))
    names = [given.removesuffix(".py").replace("/", ".") for given in modules or []]
    for given, name in zip(modules or [], names, strict=True):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise TilthError(
                f"there is no module '{error.name}'", where=f"--with {given}", hint="Name it as in 'import NAME'."
            ) from None
    return names


def model_reference(given: str) -> str:
    """A model folder as an absolute path; what is not a folder is a Hub id ('owner/name')."""
    path = Path(given).expanduser()
    if path.exists():
        inner = path / "model"
        return str((inner if not (path / "config.json").exists() and inner.is_dir() else path).absolute())
    if given.count("/") != 1 or given.startswith((".", "/", "~")):
        raise TilthError(
            f"there is no model folder '{given}'", hint="Give the folder of a model, or a Hub id such as owner/name."
        )
    return given


def data_entry(text: str) -> dict[str, Any]:
    """'PATH', 'NAME' or 'X where CONDITION' as an entry of `data:`."""
    source, _, where = text.partition(" where ")
    path = Path(source).expanduser()
    return {"source": str(path.absolute()) if path.exists() else source, **({"where": where} if where else {})}
