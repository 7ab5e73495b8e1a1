"""Constructors are configuration: what is accepted, what is refused, and how exactly errors say where."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest

from tilth.contracts import Configured, CorpusRef, Kind, ModelRef, Schedule, method, use
from tilth.errors import TilthError, nearest
from tilth.index import entries, find, index, sources
from tilth.registry import Positive, SettingError, configure, plain, rebuilt, references, walk


@method("test_rate", "steady")
class Steady(Schedule):
    """Always the same."""

    def __init__(self, *, value: Positive = 1.0) -> None:
        self.value = value

    def __call__(self, step: int, steps: int) -> float:
        return self.value


@dataclass(frozen=True)
class Group:
    __pydantic_config__ = {"extra": "forbid"}
    rate: Positive = 0.1
    schedule: Annotated[Configured, Kind("test_rate")] = use("test_rate", "steady")


@method("test_thing", "thing")
class Thing:
    """A thing."""

    def __init__(
        self, *, data: CorpusRef, gold: ModelRef | None = None, also: list[CorpusRef] = [], group: Group = Group(),  # noqa: B006
        parts: list[Annotated[Configured, Kind("test_rate")]] = [], rate: Annotated[Configured, Kind("test_rate")] | None = None,  # noqa: B006
    ) -> None:  # fmt: skip
        self.data, self.gold, self.also, self.group, self.parts, self.rate = data, gold, also, group, parts, rate


def failure(spec) -> SettingError:
    with pytest.raises(SettingError) as caught:
        configure("test_thing", spec)
    return caught.value


def test_defaults_of_methods_inside_groups_are_resolved_so_that_keys_do_not_depend_on_who_wrote_them():
    short = configure("test_thing", {"thing": {"data": "d"}})
    long = configure("test_thing", {"thing": {"data": "d", "group": {"rate": 0.1, "schedule": {"steady": {"value": 1}}}}})
    assert plain(short) == plain(long)
    assert plain(short)["thing"]["group"] == {"rate": 0.1, "schedule": {"steady": {"value": 1.0}}}


def test_build_passes_checked_values():
    built = configure("test_thing", {"thing": {"data": "d", "rate": {"steady": {"value": "2"}}}}).build()
    assert built.rate.build()(0, 1) == 2.0 and isinstance(built.group, Group)


def test_references_are_found_at_any_depth_and_replaced():
    configured = configure("test_thing", {"thing": {"data": "d", "gold": "g", "also": ["a", "b"]}})
    assert [(mark.gives, name) for mark, name in references(configured)] == [
        ("corpus", "d"), ("model", "g"), ("corpus", "a"), ("corpus", "b"),
    ]  # fmt: skip
    assert plain(rebuilt(configured, lambda mark, name: name.upper()))["thing"]["also"] == ["A", "B"]


def test_every_method_inside_is_walked():
    configured = configure("test_thing", {"thing": {"data": "d", "parts": ["steady", "steady"]}})
    assert [inner.name for inner in walk(configured)] == ["thing", "steady", "steady", "steady"]


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        ({"thing": {"data": "d", "grup": 1}}, ("thing", "grup"), "Did you mean 'group'?"),
        ({"thing": {"data": "d", "group": {"rate": -1}}}, ("thing", "group", "rate"), "greater than 0"),
        ({"thing": {"data": "d", "group": {"schedule": {"steady": {"value": 0}}}}}, ("thing", "group", "schedule", "steady", "value"), "greater than 0"),
        ({"thing": {"data": "d", "parts": ["steady", "stedy"]}}, ("thing", "parts", 1), "Did you mean 'steady'?"),
        ({"thing": {"data": "d", "rate": {"steady": {"value": "fast"}}}}, ("thing", "rate", "steady", "value"), "valid number"),
        ({"thing": {}}, ("thing", "data"), "needs the setting 'data'"),
        ({"thing": {"data": 3}}, ("thing", "data"), "valid string"),
        ({"thing": 3}, ("thing",), "must be a mapping"),
        ("thong", (), "Did you mean 'thing'?"),
        ([1], (), "expected the name"),
    ],
)  # fmt: skip
def test_errors_say_what_where_and_what_to_do(spec, path, words):
    error = failure(spec)
    assert error.path == path and words in str(error)


def test_a_class_with_open_keywords_is_refused():
    class Loose:
        def __init__(self, **anything):
            pass

    from tilth.registry import settings_of

    with pytest.raises(TypeError, match="names each of its settings"):
        settings_of(Loose)


def test_every_indexed_method_imports_under_its_name_and_explains_itself():
    for entry in index().values():
        cls = find(entry.kind, entry.name)
        assert cls.__name__ == entry.cls and (cls.kind, cls.name, cls.systems) == (entry.kind, entry.name, entry.systems)
        assert (cls.__doc__ or "").strip(), f"{entry} has no docstring"
    assert {"causal_lm", "npo", "pretrain", "tofu"} <= {entry.name for entry in entries()}


def test_sources_follow_imports_and_leave_out_what_is_not_needed():
    names = {path.name for path in sources("tilth.unlearn.npo")}
    assert {"npo.py", "contracts.py", "likelihood.py"} <= names
    assert "tofu.py" not in names and "run.py" not in names


def test_unknown_words_get_the_nearest_known_one():
    assert nearest("lerning", ["learning", "rate"]) == "Did you mean 'learning'?"
    assert nearest("zzz", ["b", "a"]) == "Known: a, b"


def test_importing_tilth_imports_nothing_heavy():
    code = "import sys, tilth, tilth.cli; print(sorted({'torch', 'transformers', 'daft', 'lance', 'pydantic', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_an_unknown_kind_of_error_is_a_tilth_error():
    with pytest.raises(TilthError, match="no unlearn method 'nop'"):
        find("unlearn", "nop")
