"""The index of methods: which exist, where their class stands, and which files of this package it needs.

Notable: the index is read from the source text (one regular expression), so listing 200 methods imports none of
them; `sources` follows import statements the same way, for cache keys that know the code.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from tilth.errors import TilthError, nearest

C = TypeVar("C", bound=type)
_DECORATOR = re.compile(
    r'^@method\(\s*"(?P<kind>\w+)",\s*"(?P<name>\w+)"(?:,\s*systems=\[(?P<systems>[\d,\s]*)\])?\s*,?\s*\)\s*\nclass (?P<cls>\w+)',
    re.MULTILINE,
)
_GROUP = "tilth.methods"
_loaded: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class Entry:
    """A method that exists: which kind and name, in which module, for which of the 97 systems."""

    kind: str
    name: str
    module: str
    cls: str
    systems: tuple[int, ...] = ()


def method(kind: str, name: str, *, systems: list[int] | None = None) -> Callable[[C], C]:
    """Register a class as the method `name` of `kind`; systems: numbers of the published systems it belongs to."""

    def register(cls: C) -> C:
        for key, value in (("kind", kind), ("name", name), ("systems", tuple(systems or ()))):
            setattr(cls, key, value)
        _loaded[kind, name] = cls
        return cls

    return register


@cache
def index() -> dict[tuple[str, str], Entry]:
    """Every method of this package and of installed plugins (entry points of the group 'tilth.methods').

    Read from source text without importing it: `@method("kind", "name", systems=[1, 2])` directly above a class.
    """
    root = Path(__file__).parent
    modules = [(".".join(path.relative_to(root.parent).with_suffix("").parts), path) for path in sorted(root.rglob("*.py"))]
    for plugin in entry_points(group=_GROUP):
        spec = find_spec(plugin.value)
        if spec and spec.origin:
            modules.append((plugin.value, Path(spec.origin)))
    found: dict[tuple[str, str], Entry] = {}
    for module, path in modules:
        for match in _DECORATOR.finditer(path.read_text(encoding="utf-8")):
            systems = tuple(int(number) for number in re.findall(r"\d+", match["systems"] or ""))
            key = match["kind"], match["name"]
            if key in found:
                raise RuntimeError(f"two methods are called {key}: in {found[key].module} and in {module}")
            found[key] = Entry(*key, module, match["cls"], systems)
    return found


def entries(kind: str | None = None) -> list[Entry]:
    """All entries of a kind (or all), including classes registered from Python in this process."""
    known = dict(index())
    for (of_kind, name), cls in _loaded.items():
        known.setdefault((of_kind, name), Entry(of_kind, name, cls.__module__, cls.__name__, getattr(cls, "systems", ())))
    return [entry for entry in sorted(known.values(), key=lambda e: (e.kind, e.name)) if kind in (None, entry.kind)]


def find(kind: str, name: str, *, where: str = "") -> type:
    """The class registered under (kind, name); imports its module. TilthError names the nearest known method."""
    if (kind, name) in _loaded:
        return _loaded[kind, name]
    entry = index().get((kind, name))
    if entry is None:
        names = [known.name for known in entries(kind)]
        raise TilthError(f"there is no {kind} method '{name}'", where=where, hint=nearest(name, names))
    importlib.import_module(entry.module)
    return _loaded[kind, name]


@cache
def sources(module: str) -> frozenset[Path]:
    """The files of this package that `module` needs, itself included, by following its import statements.

    A stage's cache key holds their content, so that an edit recomputes exactly the stages that run the edited code.
    """
    root = Path(__file__).parent
    pattern = re.compile(r"^\s*(?:from\s+(tilth[\w.]*)\s+import\s+\(?([\w, ]*)|import\s+(tilth[\w.]*))", re.MULTILINE)

    def file_of(name: str) -> Path | None:
        base = root.joinpath(*name.split(".")[1:])
        return next(
            (p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file() and p != root / "__init__.py"), None
        )

    seen: set[Path] = set()
    todo = [sys.modules[module].__file__ if module in sys.modules else None]
    queue = [Path(path) for path in todo if path] or [p for p in [file_of(module)] if p]
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for base, names, direct in pattern.findall(path.read_text(encoding="utf-8")):
            for name in [base or direct, *(f"{base}.{n.strip()}" for n in names.split(",") if base)]:
                found = file_of(name)
                if found:
                    queue.append(found)
    return frozenset(seen)
