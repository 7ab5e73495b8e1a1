# ruff: noqa: NPY002  the old global generator is one of those that must be restored
"""Going on from a checkpoint is as if nothing had happened."""

import json
import random
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.training.doubles import Network, Next, Sequences, objective, same, weights
from tests.training.test_loop import lines, train
from tests.training.test_trouble import PLAIN, run
from tilth.context import Progress
from tilth.training import checkpoints
from tilth.training.checkpoints import random_state, seeded, set_random_state
from tilth.training.loop import Budget, Evaluation, Training, fit
from tilth.training.parallel import World

ALONE = World(0, 1, torch.device("cpu"))


class Stops(Exception):
    pass


class StopsAfter(Next):
    """Fails, like a defect would, right after a step."""

    def __init__(self, step):
        torch.manual_seed(7)
        super().__init__(Network(0.1))
        self.fails = step

    def after_step(self, step):
        super().after_step(step)
        if step == self.fails:
            raise Stops


def content(folder):
    """The log without what a clock said."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(folder)]


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"accumulate": 3}, {"log_every": 7}], ids=str)
def test_weights_and_log_are_bitwise_those_of_an_uninterrupted_run(tmp_path, settings):
    settings = {"checkpoint_every": 4, "budget": Budget(steps=23), "evaluation": Evaluation(Sequences(5), 6), **settings}
    whole, fitted = train(tmp_path / "whole", **settings)
    for stop in (3, 9, 14, 22):
        with pytest.raises(Stops):
            train(tmp_path / "cut", model=StopsAfter(stop), **settings)
    resumed, fitted_again = train(tmp_path / "cut", **settings)
    assert same(weights(whole), weights(resumed))
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert (fitted.steps, fitted.tokens, fitted.loss) == (fitted_again.steps, fitted_again.tokens, fitted_again.loss)


def test_killed_anywhere_it_goes_on_bitwise(tmp_path):
    settings = {"training": {**PLAIN, "checkpoint_every": 5}, "evaluate": True}
    assert run(tmp_path / "whole", tmp_path / "whole.pt", **settings).returncode == 0
    for step in random.Random(1).sample(range(2, 39), 3):
        assert run(tmp_path / "cut", "", kill_at=step, signal="SIGKILL", **settings).returncode in (-signal.SIGKILL, 0)
    assert run(tmp_path / "cut", tmp_path / "cut.pt", **settings).returncode == 0
    assert same(torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "cut.pt"))
    assert content(tmp_path / "whole") == content(tmp_path / "cut")


class Lines(Progress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name, how):
    whole, _ = train(tmp_path / "whole", checkpoint_every=4)
    train(tmp_path / "run", checkpoint_every=4)
    path = tmp_path / "run/checkpoints/step-00000010" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(data if how == "flipped" else data[: len(data) // 3])
    heard, model = Lines(), objective()
    training = Training(**PLAIN, checkpoint_every=4)
    fit(model, Sequences(30), training=training, budget=Budget(steps=10), folder=tmp_path / "run", seed=3, progress=heard)
    assert "step 10 is damaged" in heard.said[0] and heard.said[1] == "going on from step 8"
    assert same(weights(model), weights(whole))
    assert [step for step, _ in checkpoints.checkpoints(tmp_path / "run")] == [10, 8]


def test_a_checkpoint_holds_each_tensor_once_and_no_pickle(tmp_path):
    train(tmp_path, ema=0.5)
    [(step, path)] = checkpoints.checkpoints(tmp_path)
    assert step == 10 and {file.name for file in path.iterdir()} == {
        "model.safetensors", "optimiser.safetensors", "ema.safetensors", "random.safetensors", "state.json",
    }  # fmt: skip
    with safe_open(path / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
    tied = {"model.embed.weight", "model.head.weight"}
    assert len(names & tied) == 1 and names | tied == set(objective().state_dict())


@pytest.mark.parametrize(("keep", "left"), [(1, [10]), (3, [10, 8, 6]), (None, [10, 8, 6, 4, 2])])
def test_as_many_checkpoints_stay_as_asked(tmp_path, keep, left):
    train(tmp_path, checkpoint_every=2, keep_checkpoints=keep)
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == left


def test_leftovers_of_a_kill_while_writing_do_no_harm(tmp_path):
    partial = tmp_path / "checkpoints/.step-00000010.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    train(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_checkpoints_by_the_clock(tmp_path):
    train(tmp_path, checkpoint_seconds=0.0, keep_checkpoints=None, budget=Budget(steps=4))
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == [4, 3, 2, 1]


def test_a_finished_run_is_not_trained_again(tmp_path):
    model, _ = train(tmp_path, ema=0.5)
    examples = Sequences(30)
    again, fitted = train(tmp_path, ema=0.5, examples=examples)
    assert same(weights(model), weights(again)) and fitted.steps == 10 and not examples.drawn


def test_every_generator_goes_on_where_it_was():
    def draw():
        return [torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1), random.random()]

    random.gauss(0, 1), np.random.normal()  # both keep a spare number
    state = random_state(ALONE)
    expected = draw()
    draw()
    set_random_state(state, ALONE)
    assert draw() == expected
    with seeded(1, ALONE):
        first = draw()
    with seeded(1, World(1, 2, torch.device("cpu"))):
        assert draw() != first
    with seeded(1, ALONE):
        assert draw() == first


def test_the_digest_covers_the_state(tmp_path):
    train(tmp_path)
    [(_, path)] = checkpoints.checkpoints(tmp_path)
    said = json.loads((path / "state.json").read_text())
    said["state"]["loop"]["seconds"] += 1
    (path / "state.json").write_text(json.dumps(said))
    assert checkpoints.damage(path) == "ValueError: state.json is not what was written"
