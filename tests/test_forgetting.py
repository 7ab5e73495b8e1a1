"""Exact forgetting: the model is the one that training without the rows gives, and every trace of them is dealt with."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tilth.batches.order import Order
from tilth.cli import app
from tilth.contracts import Batch, Noise
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.forgetting import forget_rows
from tilth.recipe import Recipe
from tilth.run import context_of, execute
from tilth.training.lineage import Lineage, examples_of
from tilth.training.without import Without

SMALL = {"causal_lm": {"width": 16, "depth": 1, "heads": 2, "context": 64}}
TRAINING = {"lr": 1e-2, "batch_size": 4, "checkpoint_every": 2, "keep_checkpoints": None}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two trainings, the second going on from the first, and a measurement; 40 sentences of which 2 are by 'x'."""
    monkeypatch.setenv("TILTH_STORE", str(tmp_path / "store"))
    path = tmp_path / "rows.jsonl"
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    rows = [
        {"id": str(i), "text": " ".join(words[(i * k + k) % 10] for k in range(1, 9)), "source": "x" if i in (7, 31) else "y"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "data": {"texts": {"source": str(path)}},
        "stages": {
            "words": {"tokenizer": {"data": ["texts"], "method": "word"}},
            "base": {
                "pretrain": {
                    "data": "texts", "tokenizer": "words", "backbone": SMALL, "training": TRAINING, "budget": {"steps": 12},
                    "batches": {"packed": {"length": 16, "packing": "best_fit"}},
                }
            },
            "more": {
                "pretrain": {
                    "data": "texts", "start": "base", "training": TRAINING, "budget": {"steps": 4},
                    "batches": {"packed": {"length": 16, "packing": "best_fit"}},
                }
            },
            "score": {"evaluate": {"model": "more", "benchmark": {"perplexity": {"data": "texts"}}}},
        },
    }  # fmt: skip
    return execute(Recipe.load(tree), out=tmp_path / "run")


def weights(folder):
    return load_file(folder / "model.safetensors")


def from_the_start(run, stage_name, rows, folder, **inputs):
    """The same stage trained anew without the rows, no checkpoint used."""
    configured, context = context_of(run.folder, stage_name)
    context = replace(context, inputs={**context.inputs, **inputs})
    stage = configured.build()
    torch.manual_seed(context.seed)
    text_model = stage.model(context)
    examples = stage.examples(context, text_model.tokenizer)
    without = Without(examples, examples_of(examples, np.array(rows))[0])
    stage.train(replace(context, folder=folder), text_model, without)
    return weights(folder / "model")


def test_the_new_models_are_those_of_training_without_the_rows(run, tmp_path):
    said = forget_rows(run.folder, "source = 'x'", tmp_path / "new")
    base, more = said["models"]
    assert base["stage"] == "base" and 0 < base["clean_step"] < base["first_step"] <= 12
    assert base["redone"] == 12 - base["clean_step"] and base["verified"]
    assert more["clean_step"] == 0 and more["redone"] == 4  # it started from a model that had read the rows
    anew = from_the_start(run, "base", [7, 31], tmp_path / "anew")
    made, before = weights(tmp_path / "new/base/model"), weights(run.model("base"))
    assert made.keys() == anew.keys() and all(torch.equal(made[name], anew[name]) for name in anew)
    assert any(not torch.equal(made[name], before[name]) for name in before)
    anew = from_the_start(run, "more", [7, 31], tmp_path / "anew2", base=tmp_path / "anew/model")
    made = weights(tmp_path / "new/more/model")
    assert all(torch.equal(made[name], anew[name]) for name in anew)


def test_rows_leave_the_corpus_and_what_came_of_them_is_marked(run, tmp_path):
    uri = next((tmp_path / "store").glob("data-*/corpus.lance"))
    said = forget_rows(run.folder, "source = 'x'", tmp_path / "new")
    assert Corpus.open(uri).count() == 38 and Corpus.open(uri, version=1).count() == 40
    assert said["corpora"] == [{"uri": str(uri), "rows": 2, "version_before": 1, "version_after": 2}]
    assert said["tainted"] == ["base", "more", "score"]
    assert said["kept"] == ["words (tokenizer) has read the rows and was not made anew"]
    assert all((run.stages[name] / "tainted.json").exists() for name in said["tainted"])
    assert not (run.stages["words"] / "tainted.json").exists()
    # the old run can still be traced, and forgetting again finds its work done
    again = forget_rows(run.folder, "source = 'x'", tmp_path / "new")
    assert [model["redone"] for model in again["models"]] == [model["redone"] for model in said["models"]]
    assert again["corpora"] == []


def test_purging_leaves_neither_rows_nor_tainted_stages(run, tmp_path):
    uri = next((tmp_path / "store").glob("data-*/corpus.lance"))
    forget_rows(run.folder, "source = 'x'", tmp_path / "new", purge=True)
    assert [entry["rows"] for entry in Corpus.open(uri).versions()][-1] == 38
    with pytest.raises(TilthError, match="no version 1"):
        Corpus.open(uri, version=1)
    assert not run.stages["base"].exists() and not run.stages["score"].exists() and run.stages["words"].exists()


def test_a_tainted_stage_is_not_used_again(run, tmp_path):
    forget_rows(run.folder, "source = 'x'", tmp_path / "new")
    uri = next((tmp_path / "store").glob("data-*/corpus.lance"))
    table = Corpus.open(uri, version=1).table()
    Corpus.write(uri, table.to_batches(), table.schema)  # somebody puts the rows back
    with pytest.raises(TilthError, match="since been forgotten"):
        execute(Recipe.load(run.record["tree"]), out=tmp_path / "run2")


def test_rows_nobody_has_are_a_mistake(run, tmp_path):
    with pytest.raises(TilthError, match="no training stage's data has a row"):
        forget_rows(run.folder, "source = 'z'", tmp_path / "new")
    with pytest.raises(TilthError, match="nothing is left"):
        forget_rows(run.folder, "source in ('x', 'y')", tmp_path / "new")


class Numbers:
    """Examples that are their own numbers."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def batch(self, indices, noise):
        return Batch(samples=len(indices), number=torch.from_numpy(np.asarray(indices)))

    def rows(self, indices):
        return [np.array([i]) for i in indices]


def test_only_the_positions_of_forgotten_examples_change():
    without = Without(Numbers(50), np.array([3, 17]))
    order, positions = Order(50, 1).indices(0, 5000), np.arange(5000)
    drawn = without.batch(order, Noise(1, positions)).number.numpy()
    gone = np.isin(order, [3, 17])
    assert (drawn[~gone] == order[~gone]).all() and not np.isin(drawn, [3, 17]).any()
    assert len(np.unique(drawn[gone])) > 40  # spread over all the others
    some = positions[100:140]
    assert (without.drawn(order[some], Noise(1, some)) == drawn[some]).all()  # whatever the batch
    lineage = Lineage(count=50, seed=1, batch_size=4, accumulate=1, world=1, steps=100)
    assert without.ever_drawn(lineage).tolist() == np.unique(drawn[:400]).tolist()


def test_through_the_command_line(run, tmp_path):
    done = CliRunner().invoke(app, ["forget", str(run.folder), "--where", "source = 'x'", "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)[0]
    assert [model["stage"] for model in said["models"]] == ["base", "more"]
    assert (tmp_path / "run-forgotten/more/model/model.safetensors").exists()
