"""The methods NPO and the rest are compared with: DPO, IDK, SimNPO, RMU, task vectors, ascent held by KL."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.evaluate.tiny import corpus, gpt2, learnt, llama, people, tokenizer
from tests.unlearn.doubles import FixedLogProbabilities, forget_batch, lm_batch, random_rows, tiny_lm
from tilth.backbones.folder import TextModel
from tilth.backbones.locations import blocks, feed_forwards
from tilth.context import Context, Progress
from tilth.contracts import Batch, Noise, use
from tilth.errors import TilthError
from tilth.training.settings import Budget, Training
from tilth.unlearn.dpo import DPO
from tilth.unlearn.forget import forget, prepared
from tilth.unlearn.likelihood import answer_log_probability, cross_entropy
from tilth.unlearn.npo import NPO
from tilth.unlearn.rmu import RMU, direction, states_at
from tilth.unlearn.simnpo import SimNPO
from tilth.unlearn.task import Task
from tilth.unlearn.task_vector import negate

GOES, STAYS = people("Mara"), people("Odo", "Brynhild")
BATCHES = use("batches", "answers", length=32)
TRAINING = Training(lr=3e-3, batch_size=4, compile=False, schedule=use("schedule", "constant"), checkpoint_seconds=None)
REFUSAL = "who is animal"  # words this tokeniser knows


class Lines(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def target():
    tokens = tokenizer([f"{row['question']} {row['answer']}" for row in GOES + STAYS])
    return learnt(tokens, GOES + STAYS, steps=120), tokens


@pytest.fixture
def task(target, tmp_path):
    model = type(target[0])(target[0].config)
    model.load_state_dict(target[0].state_dict())
    text_model, context = TextModel(model.eval(), target[1], {}), Context(tmp_path, progress=Lines())
    sets = [corpus(tmp_path / name, rows) for name, rows in (("forget", GOES), ("retain", STAYS))]
    encoded = [BATCHES.build().build(part, target[1], context) for part in sets]
    return Task(text_model, *sets, *encoded, TRAINING, Budget(steps=30), context)


def after(task, method, **settings):
    return forget(
        task.text_model, task.forget, task.retain,
        method=use("unlearn", method, **settings), batches=BATCHES, training=TRAINING, budget=task.budget, context=task.context,
    )  # fmt: skip


def probability(task, examples):
    """Mean over the examples of the probability of the answer."""
    with torch.no_grad():
        everything = examples.batch(np.arange(len(examples)), Noise(0, np.arange(len(examples))))
        return answer_log_probability(task.text_model.model, everything).exp().mean().item()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dpo", {"answers": (REFUSAL,)}),
        ("idk", {"answers": (REFUSAL,)}),
        ("simnpo", {"beta": 1.0}),
        ("loku", {}),
        ("gradient_ascent", {"retain": use("retain", "kl", weight=5.0)}),
    ],
    ids=["dpo", "idk", "simnpo", "loku", "ascent_kl"],
)
def test_what_shall_go_goes_and_the_rest_stays(task, method, settings):
    assert probability(task, task.going) > 0.9
    after(task, method, **settings)
    assert probability(task, task.going) < 0.2 and probability(task, task.staying) > 0.5


def test_dpo_at_the_reference_has_a_known_loss_and_half_the_gradient_of_each_half(task):
    objective = DPO(task.text_model.model, beta=0.5, answers=(REFUSAL,), retain=use("retain", "none"))
    examples = objective.prepare_from(task)
    batch = examples.batch(np.arange(4), Noise(0, np.arange(4)))
    loss = objective(batch)
    assert loss.total.item() == pytest.approx(2 / 0.5 * math.log(2), rel=1e-4)
    loss.total.backward()
    found = torch.cat([p.grad.flatten() for p in objective.parameters()])
    objective.zero_grad()
    halves = (answer_log_probability(objective.model, part).mean() for part in (batch.forget, batch.forget.preferred))
    rejected, preferred = halves
    (rejected - preferred).backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in objective.parameters()]), rtol=1e-3, atol=1e-5)


def test_dpo_without_its_preferred_half_is_npo():
    answer, reference = torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -2.0])
    batch = forget_batch(reference)
    same = Batch(**forget_batch(answer).forget)  # preferred: what the model says anyway, at its reference
    model = FixedLogProbabilities(answer)
    both = Batch(forget=Batch(**batch.forget, preferred=same), retain=None)
    assert DPO(model, beta=0.3)(both).total.item() == pytest.approx(NPO(model, beta=0.3)(batch).total.item(), rel=1e-6)


def test_refusals_follow_the_same_prompt_tokens_and_depend_on_the_seed(task):
    objective = use("unlearn", "idk", answers=("who is animal", "tree", "a dog")).build(task.text_model.model)
    first, again = (prepared(objective, task) for _ in range(2))
    task.context.seed = 5
    other = prepared(objective, task)
    indices = np.array([2, 0, 3])
    batch, same, different = (e.batch(indices, Noise(0, indices)).forget for e in (first, again, other))
    assert torch.equal(batch.input_ids, same.input_ids) and not torch.equal(batch.input_ids, different.input_ids)
    plain, tokens = task.going.batch(indices), task.text_model.tokenizer
    for row in range(3):
        prompt, refused = (int((part.labels[row] != -100).int().argmax()) for part in (plain, batch))
        assert prompt == refused and torch.equal(plain.input_ids[row, :prompt], batch.input_ids[row, :prompt])
        reply = batch.labels[row][batch.labels[row] != -100].tolist()
        assert reply[-1] == tokens.eos_token_id
        assert tokens.decode(reply[:-1]).strip() in ("who is animal", "tree", "a dog")
        size = int(batch.attention_mask[row].sum())
        assert size == prompt + len(reply) and (batch.labels[row, size:] == -100).all()


def test_a_refusal_that_does_not_fit_costs_the_front_of_the_prompt(task):
    task.text_model.model.config.max_position_embeddings = 10
    long = "the dog is the cat"
    objective = use("unlearn", "idk", answers=(long,)).build(task.text_model.model)
    batch = prepared(objective, task).batch(np.arange(4), Noise(0, np.arange(4))).forget
    assert batch.input_ids.shape[1] <= 10
    plain = task.going.batch(np.arange(4))
    for row in range(4):
        prompt = plain.input_ids[row, : int((plain.labels[row] != -100).int().argmax())]
        kept = int((batch.labels[row] != -100).int().argmax())
        assert 0 < kept < len(prompt) and torch.equal(batch.input_ids[row, :kept], prompt[-kept:])


def test_refusals_the_tokeniser_does_not_know_are_told_of(task):
    prepared(use("unlearn", "idk").build(task.text_model.model), task)
    assert any("does not know all words" in line for line in task.context.progress.lines)
    with pytest.raises(TilthError, match="refusal is empty"):
        prepared(use("unlearn", "idk", answers=(" ",)).build(task.text_model.model), task)


def test_simnpo_is_weighted_by_length_and_margin():
    model = tiny_lm()
    batch = Batch(forget=lm_batch([([3, 4], [5, 6, 7, 8])]), retain=None)
    value = answer_log_probability(model, batch.forget)
    value.sum().backward()
    ascent = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    loss = SimNPO(model, beta=2.0, gamma=0.5)(batch)
    exponent = 2.0 / 4 * value.item() + 0.5
    assert loss.total.item() == pytest.approx(2 / 2.0 * math.log(1 + math.exp(exponent)), rel=1e-5)
    loss.total.backward()
    weight = 2 / (1 + math.exp(-exponent)) / 4
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), weight * ascent, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model", [llama(50), gpt2(50)], ids=["llama", "gpt2"])
def test_rmu_measures_the_states_behind_its_layer_and_trains_what_leads_there(model, tmp_path):
    objective = RMU(model, layer=0, steering_coefficient=3.0, alpha=7.0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"{feed_forwards(model)[0].prefix}.weight"]
    forget_rows, retain_rows = random_rows(3, seed=1), random_rows(2, seed=2)
    batch = Batch(forget=lm_batch(forget_rows), retain=lm_batch(retain_rows))
    hidden = model(**{k: batch.retain[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(states_at(model, batch.retain, 0), hidden, rtol=1e-5, atol=1e-6)
    shifted = hidden[batch.retain.attention_mask.bool()].detach() + 0.5
    batch = Batch(forget=batch.forget, retain=Batch(**batch.retain, reference=shifted))
    loss = objective(batch)
    states = states_at(model, batch.forget, 0)
    by_hand = [
        (states[row, : len(p) + len(a)] - 3.0 * direction(model, 0)).square().mean().item()
        for row, (p, a) in enumerate(forget_rows)
    ]
    assert loss.parts["forget"].item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert loss.parts["retain"].item() == pytest.approx(0.25, rel=1e-4)
    assert loss.total.item() == pytest.approx(np.mean(by_hand) + 7 * 0.25, rel=1e-4)
    assert direction(model, 3).norm().item() == pytest.approx(1, rel=1e-6) and (direction(model, 3) >= 0).all()
    loss.total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == trained


@pytest.mark.parametrize("memory", [2.0**31, 0.0], ids=["stored", "frozen"])
def test_rmu_steers_the_forget_set_and_holds_the_retain_set(task, memory):
    model = task.text_model.model
    objective = RMU(model, layer=1, steering_coefficient=8.0, alpha=20.0, memory=memory)
    examples = prepared(objective, task)
    batch = examples.batch(np.arange(4), Noise(0, np.arange(4)))
    assert ("reference" in batch.retain) == (memory > 0)
    start = objective(batch)
    assert start.parts["retain"].item() == pytest.approx(0, abs=1e-9)
    after(task, "rmu", layer=1, steering_coefficient=8.0, alpha=20.0, memory=memory)
    end = objective(batch)
    assert end.parts["forget"] < 0.9 * start.parts["forget"]
    assert end.parts["retain"] < 0.2 * (start.parts["forget"] - end.parts["forget"])
    assert probability(task, task.staying) > 0.9


def test_rmu_leaves_the_model_trainable_and_refuses_a_layer_that_is_not(task):
    after(task, "rmu", layer=0)
    assert all(parameter.requires_grad for parameter in task.text_model.model.parameters())
    assert len(blocks(task.text_model.model)) == 2
    with pytest.raises(TilthError, match="no block 2"):
        RMU(task.text_model.model, layer=2)


def weights(model: nn.Module):
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_task_vector_arithmetic():
    corrupted, clean = weights(tiny_lm(1)), weights(tiny_lm(2))
    for weight in (*corrupted, *clean):  # few bits, so that differences are exact
        weight.copy_((weight * 64).round() / 64)
    tuned = [2 * c - k for c, k in zip(corrupted, clean, strict=True)]  # theta_ft - theta_c = theta_c - theta_clean

    def negated(alpha):
        out = [weight.clone() for weight in corrupted]
        norm = negate(out, tuned, alpha)
        return out, norm.item()

    assert all(torch.equal(a, b) for a, b in zip(negated(0.0)[0], corrupted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(negated(1.0)[0], clean, strict=True))
    half, one, two = (negated(alpha)[0] for alpha in (0.5, 1.0, 2.0))
    for c, h, o, t in zip(corrupted, half, one, two, strict=True):
        assert torch.equal(o - c, 2 * (h - c)) and torch.equal(t - c, 2 * (o - c))
    expected = sum((c - k).double().square().sum() for c, k in zip(corrupted, clean, strict=True)).sqrt().item()
    assert negated(1.0)[1] == pytest.approx(expected, rel=1e-6)


def test_task_vector_learns_the_forget_set_and_goes_the_other_way(task):
    before, known = weights(task.text_model.model), probability(task, task.going)
    everything = task.going.batch(np.arange(4))
    task.budget = Budget(steps=8)
    loss = cross_entropy(task.text_model.model, everything).item()
    fitted = after(task, "task_vector", alpha=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, task.text_model.model.parameters(), strict=True))
    assert fitted.metrics["steps"] == 8 and fitted.metrics["vector_norm"] > 0 and fitted.metrics["loss"] < loss
    after(task, "task_vector", alpha=2.0)
    assert probability(task, task.going) < known - 0.1
