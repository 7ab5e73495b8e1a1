"""Adapters all the way: through `forget`, killed and resumed, from the command line, and under the benchmark of speed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.evaluate.tiny import corpus, learnt, people, tokenizer
from tilth.backbones.folder import TextModel, load, save
from tilth.cli import app
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.evaluate.forgetting_speed import ForgettingSpeed
from tilth.training.interrupt import Interrupted
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget
from tilth.unlearn.likelihood import answer_log_probability
from tilth.unlearn.loku import LoKU

GOES, STAYS = people("Mara"), people("Odo", "Brynhild")
BATCHES = use("batches", "answers", length=32)
TRAINING = Training(lr=3e-2, batch_size=4, compile=False, schedule=use("schedule", "constant"), checkpoint_every=2)
ADAPTERS = pytest.mark.parametrize("adapter", ["lora", "fila"])


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    tokens = tokenizer([f"{row['question']} {row['answer']}" for row in GOES + STAYS])
    folder = tmp_path_factory.mktemp("target")
    return save(learnt(tokens, GOES + STAYS, steps=120), tokens, folder / "model")


def run(target, folder, adapter, *, shared, method="loku", steps=12, training=TRAINING):
    text_model = load(target)
    folder.mkdir(exist_ok=True)
    fitted = forget(
        text_model, corpus(shared / "forget", GOES), corpus(shared / "retain", STAYS),
        method=use("unlearn", method), batches=BATCHES, training=training, budget=Budget(steps=steps),
        context=Context(folder, shared=shared), adapter=use("adapter", adapter, rank=2),
    )  # fmt: skip
    return text_model, fitted


def probability(text_model: TextModel, rows, folder):
    examples = BATCHES.build().build(corpus(folder, rows), text_model.tokenizer, Context(folder))
    indices = np.arange(len(rows))
    with torch.no_grad():
        return answer_log_probability(text_model.model, examples.batch(indices, Noise(0, indices))).exp().mean().item()


@ADAPTERS
def test_a_killed_run_goes_on_bit_for_bit_from_the_residual_it_stored(target, tmp_path, adapter, monkeypatch):
    straight, _ = run(target, tmp_path / "straight", adapter, shared=tmp_path)

    def stops(self, step):
        if step == 5:
            raise Interrupted(step, 12, "here")

    monkeypatch.setattr(LoKU, "after_step", stops)
    with pytest.raises(Interrupted):
        run(target, tmp_path / "killed", adapter, shared=tmp_path)
    monkeypatch.undo()
    [*_, newest] = sorted((tmp_path / "killed" / "checkpoints").glob("step-*"))
    stored = load_file(newest / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    original = load(target).model.get_submodule(name).weight
    residual = stored[f"model.{name}.base_layer.weight"]
    assert torch.equal(residual, original) == (adapter == "lora")  # FILA has moved a part of it into the adapter
    resumed, fitted = run(target, tmp_path / "killed", adapter, shared=tmp_path)
    assert fitted.steps == 12
    for (key, value), other in zip(straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.parametrize(("method", "adapter"), [("npo", "lora"), ("dpo", "fila"), ("rmu", "fila")])
def test_every_kind_of_objective_trains_through_an_adapter(target, tmp_path, adapter, method):
    before = load(target)
    text_model, _ = run(target, tmp_path / "run", adapter, shared=tmp_path, method=method, steps=4)
    assert text_model.model.state_dict().keys() == before.model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in text_model.model.parameters())
    head = text_model.model.get_output_embeddings().weight
    assert torch.equal(head, before.model.get_output_embeddings().weight)
    linear = "model.layers.0.mlp.up_proj"
    assert not torch.equal(text_model.model.get_submodule(linear).weight, before.model.get_submodule(linear).weight)


def test_loku_forgets_through_few_weights(target, tmp_path):
    text_model, _ = run(target, tmp_path / "run", "fila", shared=tmp_path, steps=40, training=replace(TRAINING, lr=5e-3))
    assert probability(text_model, GOES, tmp_path / "gone") < 0.2
    assert probability(text_model, STAYS, tmp_path / "kept") > 0.6


@ADAPTERS
def test_from_the_command_line(target, tmp_path, monkeypatch, adapter):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILTH_STORE", str(tmp_path / "store"))
    for name, rows in (("forget", GOES), ("retain", STAYS)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "unlearn", str(target), "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--method", "loku", "--epochs", "2",
        "--lr", "1e-2", "--set", f"adapter={adapter}" if adapter == "lora" else "adapter.fila.rank=2", "--out", "gone", "-q",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    before, made = load(target).model.state_dict(), load("gone/model").model.state_dict()
    assert before.keys() == made.keys() and any(not torch.equal(before[name], made[name]) for name in before)


def test_speed_stops_where_the_gold_model_stands(target, tmp_path):
    tokens = load(target).tokenizer
    gold = save(learnt(tokens, STAYS, steps=120, seed=1), tokens, tmp_path / "gold")
    context = Context(tmp_path, corpora={"forget": corpus(tmp_path / "f", GOES), "retain": corpus(tmp_path / "r", STAYS)})
    settings = {"forget": "forget", "retain": "retain", "gold": str(gold), "batches": BATCHES, "method": use("unlearn", "loku")}
    scores = ForgettingSpeed(**settings, adapter=use("adapter", "lora", rank=4), training=TRAINING, steps=60)(
        target, context
    ).metrics
    assert 1 < scores["reached"] < 60 and scores["forget_accuracy"] < scores["threshold"] < 1
    assert scores["retain_probability"] > scores["forget_probability"]
    slow = Training(lr=1e-6, batch_size=4, compile=False)
    never = ForgettingSpeed(**settings, training=slow, steps=3)(target, context).metrics
    assert never["reached"] == float("inf") and never["forget_accuracy"] > 0.9 and never["retain_probability"] > 0.9
