# ruff: noqa: NPY002  the old global generator is one of those that must be restored
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.training.doubles import FLOPS, LENGTH, Network, Next, Sequences, objective, same, weights
from tilth.batches.order import Order
from tilth.contracts import Batch, Loss, Noise, Objective
from tilth.errors import TilthError
from tilth.registry import use
from tilth.training.loop import Budget, Evaluation, Training, fit
from tilth.training.parallel import World
from tilth.training.update import missing_compiler, whether_to_compile

PLAIN = {"batch_size": 4, "lr": 0.01, "log_every": 1}


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def train(folder, *, model=None, examples=None, budget=None, evaluation=None, seed=3, **training):
    model = model or objective()
    fitted = fit(
        model,
        examples or Sequences(30),
        training=Training(**{**PLAIN, **training}),
        budget=budget or Budget(steps=10),
        folder=folder,
        seed=seed,
        evaluation=evaluation,
    )
    return model, fitted


def test_it_is_what_a_loop_written_by_hand_does(tmp_path):
    model, _ = train(tmp_path, model=objective(0.0), schedule=use("schedule", "linear", warmup=0, final=0.0), clip=0.5)
    by_hand, examples, order = objective(0.0), Sequences(30), Order(30, 3)
    embedding = by_hand.model.embed.weight
    matrices = [p for p in by_hand.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in by_hand.parameters() if p.ndim < 2 or p is embedding]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), lr=0.01)
    for step in range(10):
        positions = np.arange(4 * step, 4 * step + 4)
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 - step / 10)
        by_hand(examples.batch(order.indices(4 * step, 4 * step + 4), Noise(3, positions))).total.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        optimiser.step()
        optimiser.zero_grad()
        by_hand.after_step(step + 1)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_micro_batches_give_the_gradients_of_the_whole_batch(tmp_path, clip):
    whole, _ = train(tmp_path / "whole", model=objective(0.0), batch_size=8, clip=clip)
    parts, _ = train(tmp_path / "parts", model=objective(0.0), batch_size=2, accumulate=4, clip=clip)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        assert one["parts"]["entropy"] == pytest.approx(one["loss"])
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-5)


def test_batches_without_a_count_weigh_the_same(tmp_path):
    class Squares(Objective):
        def forward(self, batch):
            return Loss((self.model(F.one_hot(batch.input_ids, 13).float()).mean(dim=(1, 2)) - 1).square().mean())

    def run(name, **settings):
        torch.manual_seed(0)
        return weights(train(tmp_path / name, model=Squares(nn.Linear(13, 4)), **settings)[0])

    whole, parts = run("whole", batch_size=8), run("parts", batch_size=4, accumulate=2)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(steps=7), 7),
        (Budget(samples=29), 8),
        (Budget(epochs=0.5), 4),
        (Budget(epochs=2), 15),
        (Budget(tokens=5 * 4 * LENGTH + 1), 6),
        (Budget(flops=FLOPS * 4 * LENGTH * 2.5), 3),
    ],
)
def test_budgets_become_steps(tmp_path, budget, steps):
    _, fitted = train(tmp_path, budget=budget)
    assert (fitted.steps, fitted.samples, fitted.tokens) == (steps, 4 * steps, 4 * LENGTH * steps)
    assert json.loads((tmp_path / "lineage.json").read_text())["steps"] == steps


def test_a_budget_in_seconds_is_measured_kept_and_trains_from_the_beginning(tmp_path):
    model, fitted = train(tmp_path, budget=Budget(seconds=1.5))
    assert fitted.steps >= 1 and fitted.seconds < 15  # a shared machine slows down between measuring and training
    again, _ = train(tmp_path / "again", budget=Budget(steps=fitted.steps))
    assert same(weights(model), weights(again))
    resumed, second = train(tmp_path, budget=Budget(seconds=1.5))
    assert second.steps == fitted.steps and same(weights(resumed), weights(model))


def test_the_log_holds_a_line_per_interval_with_means(tmp_path):
    train(tmp_path / "each", model=objective(0.0))
    train(tmp_path / "some", model=objective(0.0), log_every=4)
    each, some = lines(tmp_path / "each"), lines(tmp_path / "some")
    assert [line["step"] for line in each] == list(range(1, 11)) and [line["step"] for line in some] == [4, 8, 10]
    assert some[1]["loss"] == pytest.approx(np.mean([line["loss"] for line in each[4:8]]))
    assert some[-1]["tokens"] == 10 * 4 * LENGTH and some[-1]["samples"] == 40 and some[-1]["lr"] == each[-1]["lr"]


def test_held_out_loss_is_the_mean_over_targets_and_leaves_training_alone(tmp_path):
    held_out = Sequences(7, masked=0.0)
    plain, _ = train(tmp_path / "plain")
    model, _ = train(tmp_path / "evaluated", evaluation=Evaluation(held_out, 5))
    assert same(weights(plain), weights(model))
    logged = [line for line in lines(tmp_path / "evaluated") if "held_out_loss" in line]
    assert [line["step"] for line in logged] == [5, 10]
    expected = model(held_out.batch(np.arange(7), Noise(0, np.arange(7)))).total.item()
    assert logged[-1]["held_out_loss"] == pytest.approx(expected, rel=1e-5) and not model.training


def test_the_average_is_what_the_model_holds_in_the_end(tmp_path):
    averaged, _ = train(tmp_path / "ema", model=objective(0.0), ema=0.5)

    class Follower(Next):
        def after_step(self, step):
            super().after_step(step)
            decay = min(0.5, (1 + step) / (10 + step))
            now = [p.detach().clone() for p in self.parameters()]
            self.followed = [decay * a + (1 - decay) * n for a, n in zip(getattr(self, "followed", first), now)]

    torch.manual_seed(7)
    follower = Follower(Network(0.0))
    first = [p.detach().clone() for p in follower.parameters()]
    train(tmp_path / "plain", model=follower)
    for mine, expected in zip(averaged.parameters(), follower.followed, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_and_need_no_gradient(tmp_path):
    model = objective()
    model.model.blocks[0].requires_grad_(False)
    before = weights(model)
    train(tmp_path, model=model)
    after = weights(model)
    frozen = {name for name in before if ".blocks.0." in name}
    assert frozen and all(torch.equal(before[name], after[name]) == (name in frozen) for name in before)


def test_a_model_that_cannot_learn_is_refused(tmp_path):
    with pytest.raises(TilthError, match="every parameter is frozen"):
        train(tmp_path, model=objective().requires_grad_(False))


def test_bf16_runs_under_autocast_with_full_precision_weights(tmp_path):
    kinds = []

    class Watching(Next):
        def forward(self, batch):
            kinds.append(self.model.blocks[0].up(torch.zeros(1, 8)).dtype)
            return super().forward(batch)

    model, fitted = train(tmp_path, model=Watching(Network(0.0)), precision="bf16")
    assert set(kinds) == {torch.bfloat16} and math.isfinite(fitted.loss)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_callers_randomness_is_left_as_it_was(tmp_path):
    model = objective()
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5), np.random.seed(5)
    train(tmp_path, model=model)
    assert (torch.rand(1), np.random.rand()) == expected


def test_dropout_depends_on_the_seed_alone(tmp_path):
    torch.manual_seed(1)
    model = objective(0.5)
    torch.manual_seed(1)
    one, _ = train(tmp_path / "one", model=model)
    model = objective(0.5)
    torch.manual_seed(2)
    other, _ = train(tmp_path / "other", model=model)
    assert same(weights(one), weights(other))


@pytest.mark.slow
def test_compiled_training_is_the_same(tmp_path):
    eager, _ = train(tmp_path / "eager", model=objective(0.0))
    compiled, _ = train(tmp_path / "compiled", model=objective(0.0), compile=True)
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "device, budget, steps, worth",
    [
        ("cpu", Budget(steps=700), 700, False), ("cpu", Budget(steps=900), 900, True),
        ("cpu", Budget(seconds=239), 0, False), ("cpu", Budget(flops=1e14), 0, True),
        ("cuda", Budget(steps=9_999), 9_999, False), ("cuda", Budget(steps=10_000), 10_000, True),
        ("cuda", Budget(seconds=899), 0, False), ("cuda", Budget(flops=1e17), 0, True),
    ],
)  # fmt: skip
def test_what_is_compiled_is_what_wins_the_time_back(device, budget, steps, worth):
    large = nn.Linear(1000, 5000)  # 5,005,000 weights
    found, note = whether_to_compile(Training(), budget, large, steps, World(0, 1, torch.device(device)))
    missing = missing_compiler(torch.device(device))
    assert found == (worth and not missing) and bool(note) == worth


def test_an_error_while_making_batches_comes_through(tmp_path):
    class Failing(Sequences):
        def batch(self, indices, noise):
            if noise.positions[0] >= 20:
                raise OSError("the disk went away")
            return super().batch(indices, noise)

    with pytest.raises(OSError, match="the disk went away"):
        train(tmp_path, examples=Failing(30))
    assert lines(tmp_path)[-1]["step"] == 5


def test_nested_batches_and_missing_parts_reach_the_objective(tmp_path):
    class Pairs(Sequences):
        def batch(self, indices, noise):
            inner = super().batch(indices, noise)
            return Batch(forget=inner, retain=None, tokens=inner.tokens, samples=inner.samples)

    class OnForget(Next):
        def forward(self, batch):
            assert batch.retain is None
            return super().forward(batch.forget)

    _, fitted = train(tmp_path, model=OnForget(Network(0.0)), examples=Pairs(30))
    assert math.isfinite(fitted.loss)
