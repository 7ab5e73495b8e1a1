"""Recipes are checked whole, and every complaint names the file and the line."""

import json

import pytest
import yaml

from tilth.errors import TilthError
from tilth.recipe import Recipe, override, packaged, schema

TEXT = """
data:
  corpus: {source: DATA}
stages:
  words: {tokenizer: {data: [corpus]}}
  small:
    pretrain:
      data: corpus
      tokenizer: words
      backbone: {causal_lm: {width: 32}}
      budget: {steps: 5}
  large: {pretrain: {like: small, backbone: {causal_lm: {width: 64}}}}
"""


@pytest.fixture
def written(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')

    def write(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace("DATA", "text.jsonl"))
        return path

    return write


def failure(path, **given) -> TilthError:
    with pytest.raises(TilthError) as caught:
        Recipe.load(path, **given)
    return caught.value


def test_stages_come_after_what_they_need_and_like_is_filled_in(written):
    recipe = Recipe.load(written(TEXT))
    names = list(recipe.stages)
    assert names.index("words") < names.index("small") and names.index("words") < names.index("large")
    small, large = recipe.stages["small"].settings, recipe.stages["large"].settings
    assert (small["backbone"].settings["width"], large["backbone"].settings["width"]) == (32, 64)
    assert small["budget"] == large["budget"]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("width: 32", "widht: 32", 10, "Did you mean 'width'?"),
        ("width: 32", "width: -3", 10, "greater than 0"),
        ("width: 32", "width: wide", 10, "valid integer"),
        ("steps: 5", "stepps: 5", 11, "stepps"),
        ("tokenizer: words", "tokenizer: wrods", 7, "Did you mean 'words'?"),
        ("data: corpus\n", "data: corpse\n", 7, "Did you mean 'corpus'?"),
        ("like: small", "like: smal", 12, "Did you mean 'small'?"),
        ("like: small", "like: large", 12, "like itself"),
        ("pretrain:\n", "pertrain:\n", 7, "Did you mean 'pretrain'?"),
        ("stages:", "stages: {", None, "not valid YAML"),
        ("  large:", "  small:", 12, "said twice"),
        ("data:\n", "datas:\n", 2, "no section 'datas'"),
        ("{source: DATA}", "{sauce: DATA}", 3, "needs a source"),
    ],
)
def test_errors_name_the_line(written, old, new, line, words):
    error = failure(written(TEXT.replace(old, new, 1)))
    assert words in str(error)
    if line:
        assert f"line {line} " in f"{error.where} ", error.where


def test_a_cycle_is_named(written):
    cycle = "stages:\n  a: {split: {data: b}}\n  b: {split: {data: a}}\n"
    assert "a -> b -> a" in str(failure(written(cycle))) or "b -> a -> b" in str(failure(written(cycle)))


def test_a_stage_of_the_wrong_kind_is_refused(written):
    assert "gives a tokenizer, but a corpus is needed" in str(failure(written(TEXT.replace("data: corpus\n", "data: words\n"))))


def test_overrides_reach_below_methods_given_by_name_and_do_not_touch_the_like(written):
    path = written(TEXT)
    changes = {
        "words.tokenizer.method.bpe.vocab_size": 300,
        "stages.large.pretrain.budget.steps": 9,
        "small.pretrain.objective": "causal",
    }
    recipe = Recipe.load(path, overrides=changes)
    assert [recipe.stages[name].settings["budget"].steps for name in ("small", "large")] == [5, 9]
    assert recipe.stages["words"].settings["method"].settings["vocab_size"] == 300
    assert "there is no 'smal'" in str(failure(path, overrides={"smal.budget": 1}))


def test_override_turns_a_name_into_a_mapping():
    tree = {"stages": {"a": {"unlearn": {"method": "npo", "list": [{"x": 1}]}}}}
    override(tree, "a.unlearn.method.npo.beta", 0.5)
    override(tree, "stages.a.unlearn.list.0.x", 2)
    assert tree["stages"]["a"]["unlearn"] == {"method": {"npo": {"beta": 0.5}}, "list": [{"x": 2}]}


def test_data_given_by_name_replaces_the_source_and_unknown_names_are_refused(written, tmp_path):
    path = written(TEXT)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "b"}\n')
    assert Recipe.load(path, data={"corpus": str(other)}).data["corpus"].source == str(other)
    assert "Did you mean 'corpus'?" in str(failure(path, data={"corpse": str(other)}))


def test_scales_change_what_they_name(written):
    scaled = TEXT + "scales:\n  gpu: {stages.small.pretrain.backbone.causal_lm.width: 1024}\n"
    assert Recipe.load(written(scaled), scale="gpu").stages["small"].settings["backbone"].settings["width"] == 1024
    assert "no scale 'tpu'" in str(failure(written(scaled), scale="tpu"))


def test_a_claim_may_only_name_arms_that_exist(written):
    claim = "claim:\n  statement: s\n  arms: {a: {}}\n  expect: [{metric: m, higher: a, than: b}]\n"
    error = failure(written(TEXT + claim))
    assert "'b'" in str(error) and "line" in error.where


@pytest.mark.parametrize("name", packaged())
def test_packaged_recipes_and_all_their_arms_load(name):
    recipe = Recipe.load(name)
    for changes in (recipe.claim.arms if recipe.claim else {}).values():
        assert Recipe.load(name, overrides=changes).stages.keys() == recipe.stages.keys()


def test_packaged_recipes_are_found_by_number_and_key():
    assert Recipe.load("33").name == Recipe.load("npo").name == Recipe.load("33-npo").name == "33-npo"
    assert "Did you mean" in str(failure("33-nop"))


def test_the_schema_accepts_what_loads_and_refuses_what_does_not(written):
    import jsonschema

    described = json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(described)
    good = yaml.safe_load(TEXT)
    jsonschema.validate(good, described)
    bad = yaml.safe_load(TEXT.replace("steps: 5", "stepps: 5"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, described)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(TEXT.replace("pretrain:", "pertrain:")), described)


def test_a_name_is_not_taken_for_the_end_of_another():
    assert Recipe.load("text").name == "text" and Recipe.load("curate-text").name == "curate-text"


def test_data_given_by_name_keeps_the_filter(written, tmp_path):
    path = written(TEXT.replace("{source: DATA}", "{source: DATA, where: \"text = 'a'\"}"))
    assert Recipe.load(path, data={"corpus": str(tmp_path / "text.jsonl")}).data["corpus"].where == "text = 'a'"
