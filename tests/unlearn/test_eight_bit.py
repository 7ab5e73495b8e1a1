"""Models in 8 bit: what is read, what is trained over it, and that nothing of the rounding is kept."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.evaluate.tiny import corpus, learnt, people, tokenizer
from tests.unlearn.families import FAMILIES, family
from tilth.backbones.folder import TextModel, load, save
from tilth.backbones.locations import linear_names
from tilth.backbones.text import MaskedLM
from tilth.batches.text.answers import DEFAULT, Template
from tilth.cli import app
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import score_answers
from tilth.training.interrupt import Interrupted
from tilth.training.parallel import World
from tilth.training.settings import Budget, Training
from tilth.unlearn import forget as forget_module
from tilth.unlearn.forget import forget
from tilth.unlearn.likelihood import answer_log_probability
from tilth.unlearn.lora import NAME, Lora, lora_layers
from tilth.unlearn.npo import NPO

pytest.importorskip("bitsandbytes")

GOES, STAYS = people("Mara"), people("Odo", "Brynhild")
BATCHES = use("batches", "answers", length=32)
TRAINING = Training(lr=1e-2, batch_size=4, compile=False, schedule=use("schedule", "constant"), log_every=1)
TOKENS = tokenizer([f"{row['question']} {row['answer']}" for row in GOES + STAYS])
IDS = torch.arange(4, 24).reshape(2, 10)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The folder of a model that knows everyone."""
    return save(learnt(TOKENS, GOES + STAYS, steps=120), TOKENS, tmp_path_factory.mktemp("target") / "model")


def saved(name, folder, dtype=torch.float32):
    return save(family(name, len(TOKENS)).to(dtype), TOKENS, folder / "model")


def run(text_model, folder, method="npo", adapter="lora", *, training=TRAINING, steps=12, rank=4, **settings):
    folder.mkdir(exist_ok=True)
    return forget(
        text_model, corpus(folder / "forget", GOES), corpus(folder / "retain", STAYS),
        method=use("unlearn", method, **settings), batches=BATCHES, training=training, budget=Budget(steps=steps),
        context=Context(folder, shared=folder / "shared"), adapter=use("adapter", adapter, rank=rank) if adapter else None,
    )  # fmt: skip


def probability(text_model: TextModel, rows, folder):
    examples = BATCHES.build().build(corpus(folder, rows), text_model.tokenizer, Context(folder))
    indices = np.arange(len(rows))
    with torch.no_grad():
        return answer_log_probability(text_model.model, examples.batch(indices, Noise(0, indices))).exp().mean().item()


@pytest.mark.parametrize("name", FAMILIES)
def test_linear_weights_take_a_quarter_and_compute_what_their_rounded_selves_do(name, tmp_path):
    """W is read as round(127 W / s) s / 127, s the largest magnitude that leads to each output; all else is as it was saved."""
    plain = load(saved(name, tmp_path)).model
    text_model = load(tmp_path / "model", eight_bit=True)
    names = linear_names(plain)
    assert linear_names(text_model.model) == names and text_model.as_saved == str(tmp_path / "model")
    bytes_of = lambda model: sum(w.numel() * w.element_size() for n in names for w in [model.get_submodule(n).weight])
    assert bytes_of(text_model.model) * 4 == bytes_of(plain) > 0
    inside = {f"{n}.weight" for n in names}
    rest = {n: p for n, p in text_model.model.named_parameters() if n not in inside}
    assert all(torch.equal(value, plain.get_parameter(n)) for n, value in rest.items()) and rest
    assert not any(parameter.requires_grad for parameter in text_model.model.parameters())
    for n in names:
        weight, transposed = plain.get_submodule(n).weight.data, name == "gpt2"
        w = weight.t() if transposed else weight
        scale = w.abs().amax(1, keepdim=True).half().float()
        read = text_model.model.get_submodule(n).weight.data
        assert read.dtype == torch.int8 and (read.float() - 127 * w / scale).abs().max() < 0.6
        rounded = read.float() * scale / 127
        weight.copy_(rounded.t() if transposed else rounded)
    expected = plain(input_ids=IDS).logits
    off = (text_model.model(input_ids=IDS).logits - expected).abs().mean() / expected.abs().mean()
    assert 0 < off < 0.05  # in evaluation mode inputs are rounded too
    for n in names:
        text_model.model.get_submodule(n).train()
    torch.testing.assert_close(text_model.model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [(), ("o_proj", "c_proj", "dense")], ids=["all", "some"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_trained_is_added_to_the_weights_as_they_were_saved(name, dtype, targets, tmp_path):
    saved(name, tmp_path, dtype)
    text_model, adapter = load(tmp_path / "model", eight_bit=True), Lora(rank=3, alpha=5.0, targets=targets)
    adapter.apply(text_model.model)
    torch.manual_seed(0)
    learnt = {}
    for n, layer in lora_layers(text_model.model):
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        assert a.dtype == b.dtype == torch.float32 and a.requires_grad and b.requires_grad
        learnt[n] = torch.nn.init.normal_(b.data, std=0.1) @ a.data * (5.0 / 3)
    before, whole = load(tmp_path / "model").model, load(tmp_path / "model").model
    adapter.fold_into(text_model.model, whole)
    assert set(learnt) == {n for n in linear_names(before) if not targets or n.endswith(targets)} and learnt
    for n, value in whole.named_parameters():
        old = before.get_parameter(n)
        added = learnt.get(n.removesuffix(".weight")) if n.endswith(".weight") else None
        if added is None:
            assert torch.equal(value, old)
        else:
            exact = old.float() + (added.t() if name == "gpt2" else added)
            assert torch.equal(value, exact.to(dtype)) and not torch.equal(value, old)


def test_unlearning_gives_an_ordinary_model_with_nothing_rounded(target, tmp_path):
    """Base weights + alpha / rank * B A, B and A of the last checkpoint; alpha is twice the rank."""
    text_model = load(target, eight_bit=True)
    run(text_model, tmp_path / "run")
    assert text_model.as_saved is None
    stored = load_file(next((tmp_path / "run" / "checkpoints").glob("step-*12")) / "model.safetensors")
    before, after = load(target).model, text_model.model
    assert after.state_dict().keys() == before.state_dict().keys() and all(p.requires_grad for p in after.parameters())
    for n, value in after.named_parameters():
        base = f"model.{n.removesuffix('.weight')}"
        expected = before.get_parameter(n)
        if n.removesuffix(".weight") in linear_names(before):
            assert stored[f"{base}.base_layer.weight"].dtype == torch.int8
            b, a = stored[f"{base}.lora_B.{NAME}.weight"], stored[f"{base}.lora_A.{NAME}.weight"]
            assert b.any()
            expected = expected + 2.0 * (b @ a)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-7)
    save(after, TOKENS, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=IDS).logits, after(input_ids=IDS).logits)


def test_training_over_8_bit_ends_near_training_over_float32(target, tmp_path):
    """Over three seeds the curves lay apart by at most 4.2 % of what the loss falls, in the mean, and by 2.7 % at the end;
    probabilities of answers by 0.003. Asked for is twice that, and 0.03.
    """
    curves, ends = [], []
    for eight_bit in (False, True):
        text_model, folder = load(target, eight_bit=eight_bit), tmp_path / str(eight_bit)
        training = Training(lr=2e-3, batch_size=4, compile=False, log_every=1)
        fitted = run(text_model, folder, training=training, steps=40)
        curves.append(np.array([json.loads(line)["loss"] for line in fitted.log.read_text().splitlines()]))
        ends.append([probability(text_model, rows, folder / name) for name, rows in (("gone", GOES), ("kept", STAYS))])
    fell = curves[0][0] - curves[0].min()
    apart = np.abs(curves[0] - curves[1]) / fell
    assert fell > 5 and curves[1][0] == pytest.approx(curves[0][0], rel=1e-3)
    assert apart.mean() < 0.084 and apart[-1] < 0.054
    assert ends[0][0] < 0.3 and ends[1] == pytest.approx(ends[0], abs=0.03)


@pytest.mark.parametrize("name", ["gradient_ascent", "gradient_difference", "dpo", "idk", "simnpo", "loku", "rmu"])
def test_objectives_forget_through_lora(target, tmp_path, name):
    text_model = load(target, eight_bit=True)
    run(text_model, tmp_path / "run", name, steps=60 if name == "rmu" else 20)
    assert probability(text_model, GOES, tmp_path / "gone") < 0.5 < probability(load(target), GOES, tmp_path / "before")


def test_a_retain_term_with_a_reference_works(target, tmp_path):
    text_model = load(target, eight_bit=True)
    run(text_model, tmp_path / "run", steps=30, retain=use("retain", "kl"))
    assert probability(text_model, GOES, tmp_path / "gone") < 0.3 < 0.5 < probability(text_model, STAYS, tmp_path / "kept")


def test_a_killed_run_goes_on_bit_for_bit(target, tmp_path, monkeypatch):
    straight, killed, resumed = (load(target, eight_bit=True) for _ in range(3))
    run(straight, tmp_path / "straight")

    def stops(self, step):
        if step == 5:
            raise Interrupted(step, 12, "here")

    often = Training(lr=1e-2, batch_size=4, compile=False, schedule=use("schedule", "constant"), log_every=1, checkpoint_every=2)
    monkeypatch.setattr(NPO, "after_step", stops)
    with pytest.raises(Interrupted):
        run(killed, tmp_path / "killed", training=often)
    monkeypatch.undo()
    assert run(resumed, tmp_path / "killed", training=often).steps == 12
    for (key, value), other in zip(straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_bfloat16_arithmetic_works_over_8_bit(target, tmp_path):
    text_model = load(target, eight_bit=True)
    run(text_model, tmp_path / "run", training=Training(lr=1e-2, batch_size=4, compile=False, precision="bf16"), steps=30)
    assert probability(text_model, GOES, tmp_path / "gone") < 0.3


@pytest.mark.parametrize(
    ("method", "adapter", "why"),
    [
        ("npo", None, "only through an adapter"),
        ("npo", "fila", "changes the weights below it"),
        ("task_vector", None, "writes into the weights"),
        ("rocr", None, "writes into the weights"),
        ("selective_pruning", None, "writes into the weights"),
        ("generic_labels", "lora", "trains the weights of a copy"),
        ("generic_logits", None, "trains the weights of a copy"),
        ("eco", "lora", "trains no weights"),
    ],
)
def test_what_needs_whole_weights_is_refused_before_anything_is_computed(target, tmp_path, method, adapter, why):
    text_model = load(target, eight_bit=True)
    ran = []
    text_model.model.get_input_embeddings().register_forward_hook(lambda *_: ran.append(True))
    stage = use("stage", "unlearn", model="m", forget="f", budget=Budget(steps=1), load="8bit", method=use("unlearn", method))
    with pytest.raises(TilthError, match=why):
        run(text_model, tmp_path / "run", method, adapter, steps=1)
    assert (not ran) or method == "eco"
    if adapter is None:
        with pytest.raises(TilthError, match=why):
            stage.build().check()


def test_several_processes_and_other_models_are_refused(target, tmp_path, monkeypatch):
    monkeypatch.setattr(forget_module, "world", lambda: World(0, 2, torch.device("cpu")))
    with pytest.raises(TilthError, match="by one process"):
        run(load(target, eight_bit=True), tmp_path / "run")
    save(MaskedLM(width=32, depth=1, heads=2).build(TOKENS), TOKENS, tmp_path / "masked")
    with pytest.raises(TilthError, match="only causal language models"):
        load(tmp_path / "masked", eight_bit=True)


def test_without_bitsandbytes_it_is_said_how_to_get_it(target, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    stage = use("stage", "unlearn", model="m", forget="f", budget=Budget(steps=1), load="8bit", adapter=use("adapter", "lora"))
    for asked in (stage.build().check, lambda: load(target, eight_bit=True)):
        with pytest.raises(TilthError, match="bitsandbytes") as caught:
            asked()
        assert "tilth[quantised]" in caught.value.hint


GUARDS = {
    "eco": {"strength": 100.0},
    "guard": {},
    "key_space": {"alpha": 1.5},
    "neuron_adjust": {"share": 0.2},
    "uld": {"rank": 8, "dropout": 0.0, "wrong_answers": 0, "paraphrases": False},
}


@pytest.mark.parametrize("name", list(GUARDS))
def test_a_guard_learnt_in_8_bit_guards_the_model_as_it_was_saved(target, tmp_path, name):
    """Weights untouched; the guard is back after saving; it acts on the prompts that one learnt in float32 acts on."""
    prompts = DEFAULT.prompts([row["question"] for row in GOES + STAYS])
    made, answered = [], []
    for eight_bit in (False, True):
        text_model, folder = load(target, eight_bit=eight_bit), tmp_path / str(eight_bit)
        run(text_model, folder, name, None, steps=60, **GUARDS[name])
        made.append(text_model)
        scored = score_answers(
            text_model, [row["question"] for row in GOES], [row["answer"] for row in GOES], Template(), Context(folder)
        )
        answered.append(np.exp(-scored[1].average).mean())
    unrounded, guarded = made
    assert guarded.as_saved is None
    for (key, value), other in zip(load(target).model.state_dict().items(), guarded.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    if name == "uld":
        assert {parameter.dtype for parameter in guarded.guard.assistant.parameters()} == {torch.float32}
    flags = guarded.guard.flags(guarded, prompts)
    assert (flags == unrounded.guard.flags(unrounded, prompts)).all() and flags[: len(GOES)].all()
    if name == "neuron_adjust":  # which draws at random by the neurons' values, to the bit
        for layer, laws in guarded.guard.adjusted.items():
            own = unrounded.guard.adjusted[layer]
            (here, there) = (torch.isin(one.neurons, other.neurons) for one, other in ((laws, own), (own, laws)))
            assert here.float().mean() > 0.9
            torch.testing.assert_close(laws.forget_mean[here], own.forget_mean[there], rtol=0.05, atol=0.1)
    else:
        assert answered[1] == pytest.approx(answered[0], abs=0.1)
    save(guarded.model, TOKENS, tmp_path / "saved", guarded.about, guard=guarded.guard)
    back = load(tmp_path / "saved")
    said = generate(back, prompts, 8)
    assert said == generate(guarded, prompts, 8)
    if name in (
        "eco",
        "key_space",
        "uld",
    ):  # on so few values neuron_adjust changes little, and no name is in guard's answers alone
        known = generate(load(target), prompts, 8)
        assert all(ours != theirs for ours, theirs in zip(said[: len(GOES)], known[: len(GOES)], strict=True))


def test_from_the_command_line(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILTH_STORE", str(tmp_path / "store"))
    for name, rows in (("forget", GOES), ("retain", STAYS)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "unlearn", str(target), "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--method", "npo", "--epochs", "4",
        "--lr", "1e-2", "--set", "load=8bit", "--out", "gone", "-q",
    ]  # fmt: skip
    with pytest.raises(TilthError, match="only through an adapter"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    done = CliRunner().invoke(app, [*arguments, "--set", "adapter=lora"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    before, made = load(target).model, load("gone/model").model
    changed = {name for name, value in made.named_parameters() if not torch.equal(value, before.get_parameter(name))}
    assert changed == {f"{name}.weight" for name in linear_names(before)}
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
