"""Exact forgetting as a stage: what `tilth forget` gives, bit for bit, beside models that approximate it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tilth.errors import TilthError
from tilth.forgetting import forget_rows
from tilth.recipe import Recipe
from tilth.run import execute
from tilth.tracing import trace_run

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def tree(tmp_path, where="source = 'x'", **exact):
    """40 sentences, two of them by 'x'; a model trained on them all, and without those."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"id": str(i), "text": " ".join(WORDS[(i * k + k) % 10] for k in range(1, 9)), "source": "x" if i in (7, 31) else "y"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "data": {"texts": {"source": str(path)}, "theirs": {"source": str(path), "where": where}},
        "stages": {
            "words": {"tokenizer": {"data": ["texts"], "method": "word"}},
            "base": {
                "pretrain": {
                    "data": "texts", "tokenizer": "words", "backbone": {"causal_lm": {"width": 16, "depth": 1, "heads": 2, "context": 64}},
                    "training": {"lr": 1e-2, "batch_size": 4, "checkpoint_every": 2, "keep_checkpoints": None}, "budget": {"steps": 12},
                    "batches": {"packed": {"length": 16, "packing": "best_fit"}}, "held_out": "theirs",
                }
            },
            "without": {"exact": {"model": "base", "data": "texts", "forget": "theirs", **exact}},
        },
    }  # fmt: skip


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TILTH_STORE", str(tmp_path / "store"))


def test_the_stage_gives_the_model_that_forgetting_a_run_gives(tmp_path):
    run = execute(Recipe.load(tree(tmp_path)), seed=3, out=tmp_path / "run")
    whole = forget_rows(run.folder, "source = 'x'", tmp_path / "new")["models"][0]
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (tmp_path / "new/base/model", run.model("without")))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    before = load_file(run.model("base") / "model.safetensors")
    assert any(not torch.equal(before[name], ours[name]) for name in before)
    assert {name: run.metrics[f"without.{name}"] for name in ("clean_step", "first_step", "redone", "rows", "steps")} == {
        name: whole[name] for name in ("clean_step", "first_step", "redone", "rows", "steps")
    }
    assert 0 < run.metrics["without.clean_step"] < run.metrics["without.first_step"]


def test_rows_the_training_never_came_to_leave_the_model_as_it_is(tmp_path):
    some = tree(tmp_path)
    some["stages"]["base"]["pretrain"]["budget"] = {"steps": 1}
    some["stages"].pop("without")
    read = {
        entry["row"] for entry in trace_run(execute(Recipe.load(some), out=tmp_path / "run").folder, "true", 40) if entry["times"]
    }
    other = min({str(number) for number in range(40)} - read)
    some = {**some, "data": {**some["data"], "others": {**some["data"]["texts"], "where": f"id = '{other}'"}}}
    some["stages"]["without"] = {"exact": {"model": "base", "data": "texts", "forget": "others"}}
    run = execute(Recipe.load(some), out=tmp_path / "run")
    assert run.metrics["without.redone"] == 0 and "without.first_step" not in run.metrics
    before, after = (load_file(run.model(name) / "model.safetensors") for name in ("base", "without"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_models_and_strange_rows_are_refused(tmp_path):
    run = execute(Recipe.load(tree(tmp_path)), out=tmp_path / "run")
    bare = shutil.copytree(run.model("base"), tmp_path / "bare")
    with pytest.raises(TilthError, match="not trained from nothing"):
        execute(Recipe.load(tree(tmp_path, model=str(bare))), out=tmp_path / "again")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"id": "z", "text": "one two"}) + "\n")
    strange = tree(tmp_path)
    strange["data"]["theirs"] = {"source": str(other)}
    strange["stages"]["base"]["pretrain"].pop("held_out")
    with pytest.raises(TilthError, match="1 of 1 rows of 'forget' have an id that no row of 'data' has"):
        execute(Recipe.load(strange), out=tmp_path / "again")
    with pytest.raises(TilthError, match="'base' was not trained on 'theirs'"):
        execute(Recipe.load(tree(tmp_path, data="theirs")), out=tmp_path / "again")
