"""Recipes: YAML in, checked stages out, before anything is computed.

Notable: the tree keeps the line of every key, so an error names file and line; overrides are applied to the tree, not
to objects, so whatever a recipe may say an override may say; references decide the order of stages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from tilth.claim_spec import ClaimSpec
from tilth.errors import TilthError, nearest
from tilth.registry import Configured, SettingError, configure, entries, references

Keys = tuple[str | int, ...]
PACKAGED = Path(__file__).parent / "recipes"
_SECTIONS = ("system", "summary", "data", "stages", "claim", "scales")


@dataclass(frozen=True)
class DataSpec:
    """An entry of `data:`. source: a name of the catalogue, a path (relative to the recipe), or hf:owner/name. reader: instead of
    the one that is detected, with its settings."""

    source: str
    where: str | None = None
    kind: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    reader: Configured | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe whose settings are valid and whose references resolve; stages are in an order that can be run."""

    name: str
    file: Path | None
    system: int | None
    summary: str
    data: Mapping[str, DataSpec]
    stages: Mapping[str, Configured]
    claim: ClaimSpec | None
    tree: Mapping[str, Any]

    @staticmethod
    def load(
        source: str | Path | Mapping[str, Any],
        *,
        overrides: Mapping[str, Any] | None = None,
        data: Mapping[str, str] | None = None,
        scale: str = "cpu",
    ) -> Recipe:
        """Read a recipe: the name, number or key of a packaged one, a file, or a mapping.

        overrides: dotted path -> value, 'stages.' may be left out. data: name -> path, replaces that entry's source and nothing else.
        scale: applies the recipe's section `scales: {SCALE: {path: value}}`.
        Raises TilthError naming file and line for anything that cannot run.
        """
        file = None if isinstance(source, Mapping) else find_recipe(source)
        if file is None:
            assert isinstance(source, Mapping)
            tree, lines = copy.deepcopy(dict(source)), dict[Keys, int]()
        else:
            tree, lines = read_yaml(file)
        if not isinstance(tree, dict):
            raise TilthError("a recipe is a mapping with 'data' and 'stages'", where=str(file or "recipe"))
        tree.setdefault("data", {})
        tree["data"] = tree["data"] or {}
        for name, path in (data or {}).items():
            entry = tree["data"].get(name)
            if entry is None:
                raise TilthError(
                    f"the recipe has no data called '{name}'", where="--data", hint=nearest(name, list(tree["data"]))
                )
            kept = entry if isinstance(entry, Mapping) else {}
            tree["data"][name] = {**kept, "source": str(Path(path).absolute()) if Path(path).exists() else path}
        scales = tree.get("scales") or {}
        if scale != "cpu" and scale not in scales:
            raise TilthError(f"this recipe has no scale '{scale}'", where="--scale", hint=nearest(scale, ["cpu", *scales]))
        for path, value in {**scales.get(scale, {}), **(overrides or {})}.items():
            override(tree, path, value)
        name = file.stem if file else str(tree.get("name", "recipe"))
        return _Reader(name, file, tree, lines).recipe()


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe given by path, or by name, number or key of a packaged one."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise TilthError(f"there is no recipe file '{source}'", hint="Packaged recipes: " + ", ".join(packaged()))
        return path
    wanted = str(source).lower()
    for name in packaged():
        number, _, key = name.partition("-")
        numbered = number.isdigit() and (wanted == key or (wanted.isdigit() and int(wanted) == int(number)))
        if wanted == name or numbered:
            return PACKAGED / f"{name}.yaml"
    raise TilthError(f"there is no recipe '{source}'", hint=nearest(wanted, packaged()))


def packaged() -> list[str]:
    """Names of the recipes that come with Tilth."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def read_yaml(file: Path) -> tuple[Any, dict[Keys, int]]:
    """A YAML file as plain values, and the line (from 1) of every key and item."""
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise TilthError(f"this is not valid YAML: {getattr(error, 'problem', None) or error}", where=where) from None
    lines: dict[Keys, int] = {}

    def visit(node: yaml.Node | None, path: Keys) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, inner in node.value:
                here = (*path, key.value)
                if here in lines:
                    raise TilthError(f"'{key.value}' is said twice", where=f"{file}, line {key.start_mark.line + 1}")
                lines[here] = key.start_mark.line + 1
                visit(inner, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, inner in enumerate(node.value):
                lines[*path, number] = inner.start_mark.line + 1
                visit(inner, (*path, number))

    visit(node, ())
    return value, lines


def override(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set tree[path] = value; 'stages.' may be left out; a method given by name alone becomes a mapping on the way."""
    keys = path.split(".")
    if keys[0] not in _SECTIONS:
        if keys[0] not in tree.get("stages", {}):
            raise TilthError(
                f"there is no '{keys[0]}' to override", where=path, hint=nearest(keys[0], list(tree.get("stages", {})))
            )
        keys = ["stages", *keys]
    here: Any = tree
    for depth, key in enumerate(keys[:-1]):
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise TilthError(f"'{key}' is not one of the {len(here)} items", where=path)
            here = here[int(key)]
            continue
        inner = here.get(key)
        if isinstance(inner, str) and inner == keys[depth + 1]:
            inner = {inner: {}}
        elif isinstance(inner, (Mapping, list)):
            inner = copy.copy(inner)
        elif inner is None:
            inner = {}
        else:
            raise TilthError(f"'{key}' is {inner!r}: nothing stands below it", where=path)
        here[key] = inner
        here = inner
    if isinstance(here, list):
        here[int(keys[-1])] = value
    else:
        here[keys[-1]] = value


class _Reader:
    """One recipe being checked; knows where everything stands."""

    def __init__(self, name: str, file: Path | None, tree: dict[str, Any], lines: dict[Keys, int]) -> None:
        self.name, self.file, self.tree, self.lines = name, file, tree, lines

    def where(self, path: Keys) -> str:
        """'file, line 12 (stages.target.pretrain)', with the nearest line known above the path."""
        shown = ".".join(map(str, path))
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.file}, line {self.lines[path[:length]]} ({shown})"
        return f"{self.file or self.name} ({shown})"

    def recipe(self) -> Recipe:
        for key in self.tree:
            if key not in (*_SECTIONS, "name"):
                raise TilthError(f"a recipe has no section '{key}'", where=self.where((key,)), hint=nearest(str(key), _SECTIONS))
        data = {name: self.data_spec(name, spec) for name, spec in self.tree["data"].items()}
        if not isinstance(self.tree.get("stages"), Mapping) or not self.tree["stages"]:
            raise TilthError("a recipe needs at least one stage under 'stages'", where=self.where(("stages",)))
        stages = {name: self.stage(name, spec, ()) for name, spec in self.tree["stages"].items()}
        for name in data.keys() & stages.keys():
            raise TilthError(f"'{name}' is both data and a stage", where=self.where(("stages", name)), hint="Rename one.")
        stages = self.ordered(stages, data)
        return Recipe(
            self.name, self.file, self.tree.get("system"), str(self.tree.get("summary", "")), data, stages, self.claim(), self.tree
        )  # fmt: skip

    def data_spec(self, name: str, spec: Any) -> DataSpec:
        spec = {"source": spec} if isinstance(spec, str) else spec
        known = list(DataSpec.__dataclass_fields__)
        if not isinstance(spec, Mapping) or not isinstance(spec.get("source"), str):
            raise TilthError(
                f"data '{name}' needs a source", where=self.where(("data", name)), hint="Write 'source: PATH or NAME'."
            )
        for key in spec:
            if key not in known:
                raise TilthError(
                    f"data has no setting '{key}'", where=self.where(("data", name, key)), hint=nearest(str(key), known)
                )
        reader = spec.get("reader")
        return DataSpec(**{**spec, "reader": self.configured("reader", reader, ("data", name, "reader")) if reader else None})

    def stage(self, name: str, spec: Any, seen: tuple[str, ...]) -> Configured:
        """The stage `name`, with what it is `like` filled in."""
        return self.configured("stage", self.unlike(name, spec, seen), ("stages", name))

    def configured(self, kind: str, spec: Any, path: Keys) -> Configured:
        """A method with its settings; errors name file and line."""
        try:
            return configure(kind, spec, path)
        except SettingError as error:
            raise TilthError(error.what, where=self.where(error.path), hint=error.hint) from None
        except TilthError as error:
            raise TilthError(error.what, where=error.where or self.where(path), hint=error.hint) from None

    def unlike(self, name: str, spec: Any, seen: tuple[str, ...]) -> Any:
        """Replace {kind: {like: other, ...}} by the other stage's settings, updated."""
        if not (isinstance(spec, Mapping) and len(spec) == 1):
            return spec
        kind, given = next(iter(spec.items()))
        if not (isinstance(given, Mapping) and "like" in given):
            return spec
        other = given["like"]
        where = self.where(("stages", name, kind, "like"))
        if other in (*seen, name):
            raise TilthError(f"stage '{name}' is like itself", where=where)
        if other not in self.tree["stages"]:
            raise TilthError(
                f"there is no stage '{other}' to be like", where=where, hint=nearest(str(other), list(self.tree["stages"]))
            )
        model = self.unlike(other, self.tree["stages"][other], (*seen, name))
        if not isinstance(model, Mapping) or kind not in model:
            raise TilthError(f"stage '{other}' is not a '{kind}' stage", where=where)
        return {kind: {**(model[kind] or {}), **{key: value for key, value in given.items() if key != "like"}}}

    def ordered(self, stages: dict[str, Configured], data: dict[str, DataSpec]) -> dict[str, Configured]:
        """The stages so that each comes after what it refers to; references are checked on the way."""
        needs: dict[str, set[str]] = {}
        for name, stage in stages.items():
            path: Keys = ("stages", name, stage.name)
            needs[name] = set()
            for mark, target in references(stage):
                if target in stages:
                    gives = stages[target].cls.gives  # type: ignore[attr-defined]
                    if mark.gives != gives and not (mark.gives == "tokenizer" and gives == "model"):
                        raise TilthError(f"'{target}' gives a {gives}, but a {mark.gives} is needed", where=self.where(path))
                    needs[name].add(target)
                elif mark.gives == "corpus" and target not in data:
                    known = [*data, *(other for other in stages if stages[other].cls.gives == "corpus")]  # type: ignore[attr-defined]
                    raise TilthError(f"there is no data '{target}'", where=self.where(path), hint=nearest(target, known))
                elif mark.gives != "corpus" and not Path(target).exists() and "/" not in target:
                    known = [other for other in stages if stages[other].cls.gives == mark.gives]  # type: ignore[attr-defined]
                    raise TilthError(f"there is no {mark.gives} '{target}'", where=self.where(path), hint=nearest(target, known))
        try:
            order = list(TopologicalSorter(needs).static_order())
        except CycleError as error:
            ring = " -> ".join(reversed(error.args[1]))
            raise TilthError(f"stages wait for each other: {ring}", where=self.where(("stages", error.args[1][0]))) from None
        return {name: stages[name] for name in order}

    def claim(self) -> ClaimSpec | None:
        spec = self.tree.get("claim")
        if spec is None:
            return None
        from pydantic import ValidationError

        try:
            return ClaimSpec.model_validate(spec)
        except ValidationError as error:
            first = error.errors()[0]
            raise TilthError(first["msg"].removeprefix("Value error, "), where=self.where(("claim", *first["loc"]))) from None


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors: stages, and one level of every method's settings."""
    from tilth.registry import find, settings_of

    definitions: dict[str, Any] = {}
    stages = {}
    for entry in entries("stage"):
        inner = settings_of(find("stage", entry.name)).model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(inner.pop("$defs", {}))
        inner["properties"]["like"] = {"type": "string", "description": "take the settings of another stage"}
        inner.pop("required", None)
        stages[entry.name] = inner
    text: dict[str, Any] = {"type": "string"}
    data = {
        "type": "object",
        "required": ["source"],
        "additionalProperties": False,
        "properties": {
            "source": text,
            "where": text,
            "kind": text,
            "columns": {"type": "object", "additionalProperties": text},
            "reader": {"anyOf": [{"enum": [entry.name for entry in entries("reader")]}, {"type": "object", "maxProperties": 1}]},
        },
    }
    stage = {"type": "object", "minProperties": 1, "maxProperties": 1, "properties": stages, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tilth recipe",
        "type": "object",
        "required": ["stages"],
        "additionalProperties": False,
        "properties": {
            "name": text,
            "system": {"type": "integer", "minimum": 1, "maximum": 97},
            "summary": text,
            "data": {"type": "object", "additionalProperties": {"anyOf": [text, data]}},
            "stages": {"type": "object", "minProperties": 1, "additionalProperties": stage},
            "claim": ClaimSpec.model_json_schema(),
            "scales": {"type": "object", "additionalProperties": {"type": "object"}},
        },
        "$defs": definitions,
    }
