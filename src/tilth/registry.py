"""Where methods are found, and how what a recipe says becomes their settings.

Notable: the index is read from the source text (one regular expression), so listing 200 methods imports none of
them; a constructor's keyword-only arguments are the only description of its settings, and pydantic checks against
exactly those; `Configured` is a method's name with checked settings, waiting for the objects it works on.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le

from tilth.errors import TilthError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, GetCoreSchemaHandler

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]

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


@dataclass(frozen=True)
class Kind:
    """Marks a setting that is itself a method: `Annotated[Configured, Kind("backbone")]`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(lambda value: configure(self.kind, value))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        names = sorted(entry.name for entry in index().values() if entry.kind == self.kind)
        named = {"type": "object", "minProperties": 1, "maxProperties": 1, "properties": {name: {} for name in names}}
        return {"anyOf": [{"enum": names}, named]}


@dataclass(frozen=True)
class Reference:
    """Marks a setting that names a part of the recipe or a place on disk: gives is 'corpus', 'model' or 'tokenizer'."""

    gives: str


CorpusRef = Annotated[str, Reference("corpus")]
ModelRef = Annotated[str, Reference("model")]
TokenizerRef = Annotated[str, Reference("tokenizer")]


@dataclass(frozen=True)
class Configured:
    """A method and its checked settings; `build(*objects)` makes it."""

    kind: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> type:
        return find(self.kind, self.name)

    def build(self, *objects: Any) -> Any:
        return self.cls(*objects, **self.settings)


def method(kind: str, name: str, *, systems: list[int] | None = None) -> Callable[[C], C]:
    """Register a class as the method `name` of `kind`; systems: numbers of the published systems it belongs to."""

    def register(cls: C) -> C:
        cls.kind, cls.name, cls.systems = kind, name, tuple(systems or ())
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
        known.setdefault((of_kind, name), Entry(of_kind, name, cls.__module__, cls.__name__, cls.systems))
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
def settings_of(cls: type) -> type[BaseModel]:
    """The pydantic model of a constructor's keyword-only arguments: unknown keys are errors, defaults are checked."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise TypeError(f"{cls.__qualname__} takes **{parameter.name}: a method names each of its settings")
    config = ConfigDict(extra="forbid", validate_default=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)


def configure(kind: str, spec: Any) -> Configured:
    """Check 'name', {'name': {settings}} or a Configured against the method's constructor.

    Raises TilthError (unknown method) or pydantic's ValidationError (settings), which `recipe` turns into file and line.
    """
    if isinstance(spec, Configured):
        kind, name, given = spec.kind, spec.name, dict(spec.settings)
    elif isinstance(spec, str):
        name, given = spec, {}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        name, given = next(iter(spec.items()))
        given = {} if given is None else given
    else:
        raise TilthError(
            f"expected the name of a {kind} method, or one name with its settings, not {spec!r}",
            hint=f"Write '{kind_example(kind)}' or '{{{kind_example(kind)}: {{setting: value}}}}'.",
        )
    if not isinstance(given, Mapping):
        raise TilthError(f"the settings of {kind} method '{name}' must be a mapping, not {given!r}")
    model = settings_of(find(kind, name))
    checked = model.model_validate(dict(given))
    return Configured(kind, name, {key: getattr(checked, key) for key in model.model_fields})


def use(kind: str, name: str, **settings: Any) -> Configured:
    """A method with settings, to be written as a default or in Python; checked when it is first used."""
    return Configured(kind, name, settings)


def kind_example(kind: str) -> str:
    """Some name of this kind, for messages."""
    return next((entry.name for entry in entries(kind)), "name")


def plain(value: Any) -> Any:
    """A setting as JSON: what is stored, hashed and shown. Methods become {name: settings}."""
    if isinstance(value, Configured):
        return {value.name: {key: plain(inner) for key, inner in value.settings.items()}}
    if hasattr(value, "__dataclass_fields__"):
        return {key: plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value


def walk(value: Any) -> Iterator[Configured]:
    """Every method inside a setting, outermost first."""
    if isinstance(value, Configured):
        yield value
        yield from walk(dict(value.settings))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from walk(inner)


@cache
def sources(module: str) -> frozenset[Path]:
    """The files of this package that `module` needs, itself included, by following its import statements.

    A stage's cache key holds their content, so that an edit recomputes exactly the stages that run the edited code.
    """
    root = Path(__file__).parent
    pattern = re.compile(r"^\s*(?:from\s+(tilth[\w.]*)\s+import\s+\(?([\w, ]*)|import\s+(tilth[\w.]*))", re.MULTILINE)

    def file_of(name: str) -> Path | None:
        base = root.joinpath(*name.split(".")[1:])
        return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file() and p != root / "__init__.py"), None)

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
