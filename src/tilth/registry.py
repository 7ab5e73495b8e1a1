"""Settings: how what a recipe says becomes a method's arguments.

Notable: a constructor's keyword-only arguments are the only description of its settings, and pydantic checks against
exactly those; `Configured` is a method's name with checked settings, waiting for the objects it works on; methods and
references inside settings are found through their annotations, so checking, keys and inputs need no list of names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

from tilth.errors import TilthError, nearest
from tilth.index import entries, find, index, method

if TYPE_CHECKING:
    from pydantic import BaseModel, GetCoreSchemaHandler

__all__ = [
    "Configured", "CorpusRef", "Fraction", "Kind", "ModelRef", "NonNegative", "NonNegativeInt", "Positive", "PositiveInt", "Reference",
    "SettingError", "TokenizerRef", "configure", "entries", "find", "index", "method", "plain", "rebuilt", "references", "settings_of",
    "transform", "use", "walk",
]  # fmt: skip

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Kind:
    """Marks a setting that is itself a method: `Annotated[Configured, Kind("backbone")]`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        from pydantic_core import core_schema

        # `configure` has already replaced what the recipe says by a Configured; only defaults still need checking here.
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


class SettingError(TilthError):
    """A setting that cannot be; path: where it stands below the method being configured."""

    def __init__(self, what: str, *, path: tuple[str | int, ...], hint: str = "", where: str = "") -> None:
        super().__init__(what, where=where or ".".join(map(str, path)), hint=hint)
        self.path = path


def configure(kind: str, spec: Any, path: tuple[str | int, ...] = ()) -> Configured:
    """Check 'name', {'name': {settings}} or a Configured against the method's constructor, and all methods inside it.

    Raises SettingError: unknown method or setting (with the nearest known one), wrong type, value out of range.
    """
    if isinstance(spec, Configured):
        kind, name, given = spec.kind, spec.name, dict(spec.settings)
    elif isinstance(spec, str):
        name, given = spec, {}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        name, given = next(iter(spec.items()))
        given = {} if given is None else given
    else:
        example = next((entry.name for entry in entries(kind)), "name")
        raise SettingError(
            f"expected the name of a {kind} method, or one name with its settings, not {spec!r}",
            path=path,
            hint=f"Write '{example}' or '{{{example}: {{setting: value}}}}'.",
        )
    inside = path if isinstance(spec, str) else (*path, name)
    if not any(entry.name == name for entry in entries(kind)):
        raise SettingError(
            f"there is no {kind} method '{name}'", path=inside, hint=nearest(str(name), [e.name for e in entries(kind)])
        )
    if not isinstance(given, Mapping):
        raise SettingError(f"the settings of '{name}' must be a mapping, not {given!r}", path=inside)
    model = settings_of(find(kind, name))
    for key in given:
        if key not in model.model_fields:
            raise SettingError(
                f"'{name}' has no setting '{key}'", path=(*inside, key), hint=nearest(str(key), list(model.model_fields))
            )
    ready = {key: _configure_inside(*_field(model, key), value, (*inside, key)) for key, value in given.items()}
    from pydantic import ValidationError

    try:
        checked = model.model_validate(ready)
    except ValidationError as error:
        raise _explained(error, name, inside) from None
    settings = {key: _configure_inside(*_field(model, key), getattr(checked, key), (*inside, key)) for key in model.model_fields}
    return Configured(kind, name, settings)


def _field(model: type[BaseModel], key: str) -> tuple[Any, tuple[Any, ...]]:
    return model.model_fields[key].annotation, tuple(model.model_fields[key].metadata)


def _configure_inside(annotation: Any, metadata: tuple[Any, ...], value: Any, path: tuple[str | int, ...]) -> Any:
    """`value` with every method specification in it configured, so that errors know exactly where they stand."""

    def visit(annotation: Any, metadata: tuple[Any, ...], value: Any, path: tuple[str | int, ...]) -> Any:
        kind = next((mark for mark in metadata if isinstance(mark, Kind)), None)
        return configure(kind.kind, value, path) if kind else value

    return transform(annotation, metadata, value, path, visit)


Visit = Callable[[Any, tuple[Any, ...], Any, tuple[str | int, ...]], Any]


def transform(annotation: Any, metadata: tuple[Any, ...], value: Any, path: tuple[str | int, ...], visit: Visit) -> Any:
    """Rebuild a setting, calling visit(annotation, marks, value, path) on everything marked with Kind or Reference."""
    if get_origin(annotation) is Annotated:
        return transform(annotation.__origin__, (*metadata, *annotation.__metadata__), value, path, visit)
    if value is None:
        return None
    if any(isinstance(mark, (Kind, Reference)) for mark in metadata):
        return visit(annotation, metadata, value, path)
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        for argument in arguments:
            if get_origin(argument) is Annotated and isinstance(value, (str, Mapping, Configured)):
                return transform(argument, (), value, path, visit)
            if get_origin(argument) is list and isinstance(value, (list, tuple)):
                return transform(argument, (), value, path, visit)
        return value
    if get_origin(annotation) is list and isinstance(value, (list, tuple)):
        return [transform(arguments[0], (), inner, (*path, i), visit) for i, inner in enumerate(value)]
    if get_origin(annotation) is dict and isinstance(value, Mapping):
        return {key: transform(arguments[1], (), inner, (*path, key), visit) for key, inner in value.items()}
    if is_dataclass(annotation) and isinstance(annotation, type):
        hints = get_type_hints(annotation, include_extras=True)
        if isinstance(value, Mapping):
            return {k: transform(hints[k], (), v, (*path, k), visit) if k in hints else v for k, v in value.items()}
        changes = {
            f.name: transform(hints[f.name], (), getattr(value, f.name), (*path, f.name), visit) for f in fields(annotation)
        }
        return replace(value, **changes)
    return value


def rebuilt(method: Configured, visit: Callable[[Reference, str], str]) -> Configured:
    """The same method with every reference in it, at any depth, replaced by visit(mark, name)."""
    model = settings_of(method.cls)

    def on(annotation: Any, metadata: tuple[Any, ...], value: Any, path: tuple[str | int, ...]) -> Any:
        mark = next((m for m in metadata if isinstance(m, Reference)), None)
        if mark:
            return visit(mark, value)
        return rebuilt(value, visit) if isinstance(value, Configured) else value

    return Configured(
        method.kind,
        method.name,
        {key: transform(*_field(model, key), value, (key,), on) for key, value in method.settings.items()},
    )


def references(method: Configured) -> list[tuple[Reference, str]]:
    """Everything the method's settings refer to, at any depth, in order."""
    found: list[tuple[Reference, str]] = []

    def visit(mark: Reference, name: str) -> str:
        found.append((mark, name))
        return name

    rebuilt(method, visit)
    return found


def _explained(error: Any, name: str, path: tuple[str | int, ...]) -> SettingError:
    """pydantic's first complaint as ours: what, the value given, what is permitted."""
    first = error.errors()[0]
    location = tuple(
        part for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in ("float", "int", "str")))
    )
    setting = ".".join(map(str, location))
    if first["type"] == "missing":
        return SettingError(f"'{name}' needs the setting '{setting}'", path=(*path, *location))
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return SettingError(f"'{name}' has no setting '{setting}'", path=(*path, *location))
    complaint = first["msg"].removeprefix("Value error, ")
    return SettingError(
        f"'{setting}' of '{name}' is {first['input']!r}: {complaint[0].lower()}{complaint[1:]}", path=(*path, *location)
    )


def use(kind: str, name: str, **settings: Any) -> Configured:
    """A method with settings, to be written as a default or in Python; checked when it is first used."""
    return Configured(kind, name, settings)


def plain(value: Any) -> Any:
    """A setting as JSON: what is stored, hashed and shown. Methods become {name: settings}."""
    if isinstance(value, Configured):
        return {value.name: {key: plain(inner) for key, inner in value.settings.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
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
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from walk(getattr(value, entry.name))
