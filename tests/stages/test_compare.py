import json

import pytest

from tests.evaluate.tiny import corpus, learnt, llama, people, tokenizer
from tilth.backbones.folder import save
from tilth.context import Context, exhibits
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.recipe import Recipe
from tilth.registry import configure
from tilth.report.figures import draw
from tilth.stages.compare import Compare


@pytest.fixture
def bed(tmp_path):
    tokens = tokenizer()
    models = {"knows": learnt(tokens, people("Mara", "Odo")), "fresh": llama(len(tokens))}
    inputs = {}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        inputs[name] = save(model, tokens, tmp_path / name / "model")
    (tmp_path / "knows" / "stage.json").write_text(json.dumps({"seconds": 3.5}))
    (tmp_path / "stage").mkdir()
    sets = {"forget": people("Mara"), "retain": people("Odo")}
    return Context(
        folder=tmp_path / "stage",
        corpora={name: corpus(tmp_path / f"{name}.lance", rows) for name, rows in sets.items()},
        inputs=inputs,
        keys={"knows": "a", "fresh": "b"},
        shared=tmp_path / "shared",
    )


def compare(**settings):
    bench = use("benchmark", "tofu", forget="forget", retain="retain", max_new_tokens=8, show=0)
    made: Compare = configure("stage", {"compare": {"models": ["knows", "fresh"], "benchmark": bench, **settings}}).build()
    made.check()
    return made


def test_one_row_per_model_one_point_per_model_and_the_seconds(bed):
    found = compare(columns=["forget_probability", "model_utility"]).run(bed)
    assert found["knows_forget_probability"] > 0.9 > 0.5 > found["fresh_forget_probability"]
    assert found["knows_seconds"] == 3.5 and "fresh_seconds" not in found
    table, picture = exhibits(bed.folder)
    assert table["columns"] == ["model", "weights unlearned", "seconds", "forget_probability", "model_utility"]
    assert [row[:3] for row in table["rows"]] == [["knows", "", 3.5], ["fresh", "", None]]
    assert picture["series"]["knows"] == [[found["knows_model_utility"], found["knows_forget_probability"]]]


def test_what_was_measured_is_found_again_and_a_guard_is_marked(bed, monkeypatch):
    first = compare().run(bed)
    from tilth.evaluate.tofu import Tofu

    monkeypatch.setattr(Tofu, "__call__", lambda *_: pytest.fail("measured again"))
    (bed.inputs["fresh"] / "guard").mkdir()
    assert compare().run(bed) == first
    tables = [entry for entry in exhibits(bed.folder) if entry["kind"] == "table"]
    assert [row[1] for row in tables[-1]["rows"]] == ["", "no: guarded"]


def test_axes_must_be_metrics_and_models_be_named_once(bed):
    with pytest.raises(TilthError, match="gives no 'utility'"):
        compare(x="utility").run(bed)
    with pytest.raises(TilthError, match="each once"):
        compare(models=["knows", "knows"])


def test_points_of_a_picture_carry_their_names():
    picture = draw("a", {"npo": [[0.5, 0.1]], "ascent": [[0.1, 0.0]]})
    lines = draw("a", {"npo": [[0.0, 0.1], [1.0, 0.2]], "ascent": [[0.0, 0.3], [1.0, 0.0]]})
    assert ">npo<" in str(picture.svg) and ">npo<" not in str(lines.svg)


@pytest.mark.parametrize("scale", ["cpu", "forget05", "forget01", "gpu"])
def test_the_packaged_comparison_is_valid_at_every_scale(scale):
    recipe = Recipe.load("comparison", scale=scale)
    compared = set(recipe.stages["comparison"].settings["models"])
    assert compared == {name for name, stage in recipe.stages.items() if stage.cls.gives == "model"}
