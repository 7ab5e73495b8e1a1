"""Stages are keyed by what makes them: shared when equal, continued when cut off, made again when anything changed."""

import json

import pytest

from tilth.contracts import CorpusRef, ModelRef, Stage, method
from tilth.errors import TilthError
from tilth.recipe import Recipe
from tilth.run import context_of, execute, read_run

MADE: list[str] = []


@method("stage", "counted")
class Counted(Stage):
    """Counts rows; remembers that it ran."""

    gives = "model"

    def __init__(self, *, data: CorpusRef, scale: float = 1.0, like_model: ModelRef | None = None, fail: bool = False) -> None:
        self.data, self.scale, self.like_model, self.fail = data, scale, like_model, fail

    def check(self):
        if self.scale < 0:
            raise TilthError("scale below zero")

    def run(self, context):
        MADE.append(f"{self.scale:g}/{context.seed}")
        if self.fail:
            (context.folder / "half").write_text("kept")
            raise RuntimeError("defect")
        (context.folder / "model").mkdir(exist_ok=True)
        (context.folder / "model" / "value").write_text(str(self.scale))
        before = float((context.model(self.like_model) / "value").read_text()) if self.like_model else 0.0
        return {"rows": context.corpus(self.data).count() * self.scale, "before": before}


@method("stage", "seedless")
class Seedless(Counted):
    """The same, whatever the seed."""

    seeded = False


@pytest.fixture
def world(tmp_path):
    MADE.clear()
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": f"row {i}", "even": i % 2 == 0}) + "\n" for i in range(10)))

    def go(stages, *, out="out", seed=0, where=None):
        tree = {"data": {"corpus": {"source": str(path), **({"where": where} if where else {})}}, "stages": stages}
        return execute(Recipe.load(tree), seed=seed, out=tmp_path / out, store=tmp_path / "store")

    return go


def test_metrics_inputs_and_filters_arrive(world):
    run = world({"b": {"counted": {"data": "corpus", "scale": 3, "like_model": "a"}}, "a": {"counted": {"data": "corpus", "scale": 2}}}, where="even")  # fmt: skip
    assert run.metrics == {"a.rows": 10.0, "a.before": 0.0, "b.rows": 15.0, "b.before": 2.0}
    assert (run.folder / "a" / "model" / "value").read_text() == "2.0" and run.record["finished"]


def test_equal_stages_are_made_once_across_runs_and_names(world):
    world({"a": {"counted": {"data": "corpus"}}})
    run = world({"other": {"counted": {"data": "corpus", "scale": 1.0}}}, out="second")
    assert MADE == ["1/0"] and run.record["stages"][0]["cached"] and run.record["stages"][0]["name"] == "other"


def test_settings_inputs_data_and_seed_make_another_key(world):
    def stages(scale):
        return {
            "a": {"counted": {"data": "corpus", "scale": scale}},
            "b": {"counted": {"data": "corpus", "scale": 9, "like_model": "a"}},
        }

    world(stages(1))
    world(stages(2))
    assert MADE == ["1/0", "9/0", "2/0", "9/0"]
    world(stages(1), seed=1)
    world(stages(1), where="even")
    assert len(MADE) == 8
    world({"a": {"seedless": {"data": "corpus"}}}, seed=0)
    world({"a": {"seedless": {"data": "corpus"}}}, seed=1)
    assert len(MADE) == 9


def test_a_stage_that_failed_is_told_and_what_was_before_it_is_kept(world, tmp_path):
    stages = {"a": {"counted": {"data": "corpus"}}, "b": {"counted": {"data": "corpus", "like_model": "a", "fail": True}}}
    with pytest.raises(RuntimeError, match="defect"):
        world(stages)
    record = read_run(tmp_path / "out")
    assert record["failed"] == {"stage": "b", "what": "defect"} and [stage["name"] for stage in record["stages"]] == ["a"]
    assert [path.name for path in (tmp_path / "store").glob("counted-*.partial/half")] == ["half"]
    with pytest.raises(RuntimeError):
        world(stages)
    assert MADE == ["1/0", "1/0", "1/0"]


def test_checks_come_before_anything_is_computed(world, tmp_path):
    with pytest.raises(TilthError, match="scale below zero"):
        world({"a": {"counted": {"data": "corpus"}}, "b": {"counted": {"data": "corpus", "scale": -1}}})
    assert MADE == []


def test_no_rows_is_an_error_that_names_the_filter(world):
    with pytest.raises(TilthError, match="no rows where text = 'x'"):
        world({"a": {"counted": {"data": "corpus"}}}, where="text = 'x'")


def test_a_finished_run_gives_its_contexts_back(world, tmp_path):
    world(
        {"a": {"counted": {"data": "corpus", "scale": 2}}, "b": {"counted": {"data": "corpus", "like_model": "a"}}},
        where="even",
        seed=4,
    )
    stage, context = context_of(tmp_path / "out", "b")
    assert stage.settings["like_model"] == "a" and context.seed == 4 and context.corpus("corpus").count() == 5
    assert (context.model("a") / "value").read_text() == "2.0"
    with pytest.raises(TilthError, match="no finished stage 'c'"):
        context_of(tmp_path / "out", "c")
