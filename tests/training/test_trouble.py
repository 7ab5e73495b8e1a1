"""What goes wrong while training: each with what it says and what is left afterwards."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from tests.training import worker
from tests.training.doubles import Network, Next, Sequences, objective, same, weights
from tests.training.test_loop import PLAIN, lines, train
from tilth.batches.order import Order
from tilth.errors import TilthError
from tilth.training import checkpoints
from tilth.training.loop import Budget, Interrupted

# One process imports torch and forks the others before it has any thread: as real as new ones, and quick.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.worker"])


def run(folder, out, *, limit=None, **said):
    """worker.main in a process of its own: its exit code and what it printed."""
    said = {"count": 30, "folder": str(folder), "out": str(out), "budget": {"steps": 40}, "training": PLAIN, **said}
    output = folder.with_suffix(".output")
    output.parent.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=worker.forked, args=(said, limit, str(output)))
    process.start()
    process.join()
    return SimpleNamespace(returncode=process.exitcode, stdout=output.read_text())


@pytest.mark.parametrize("log_every", [1, 7, 100])
def test_an_infinite_loss_names_its_step_and_rows_and_keeps_the_checkpoint(tmp_path, log_every):
    order = Order(30, 3)
    bad = int(order.indices(4 * 17 + 2, 4 * 17 + 3)[0])  # first drawn in some step up to 18
    step = int(order.positions(bad, 1000)[0]) // 4 + 1
    with pytest.raises(TilthError) as raised:
        train(tmp_path, examples=Sequences(30, broken=(bad,)), budget=Budget(steps=50), log_every=log_every, checkpoint_every=2)
    rows = {int(index) + extra for index in order.indices(4 * step - 4, 4 * step) for extra in (0, 1000)}
    assert f"the loss of step {step} is not a finite number" in raised.value.what
    assert {int(row) for row in raised.value.what.split("rows ")[1].split(", ")} == rows
    kept = [at for at, _ in checkpoints.checkpoints(tmp_path)]
    assert kept == [at for at in (2 * ((step - 1) // 2), 2 * ((step - 1) // 2) - 2) if at > 0]
    if kept:
        assert f"(step {kept[0]})" in raised.value.hint


def test_a_broken_gradient_under_a_finite_loss_is_never_saved(tmp_path):
    class Explodes(Next):
        def forward(self, batch):
            loss = super().forward(batch)
            weight = self.model.blocks[0].up.bias
            loss.total = loss.total + (torch.sqrt((weight * 0).square()).sum() if self.steps == 6 else 0)  # d sqrt at 0
            return loss

    for clip, complaint in ((1.0, "the gradient of step 7"), (None, "the model of step 7|the loss of step 8")):
        folder = tmp_path / str(clip)
        with pytest.raises(TilthError, match=complaint):
            train(folder, model=Explodes(Network(0.0)), clip=clip, checkpoint_every=1)
        assert [step for step, _ in checkpoints.checkpoints(folder)] == [6, 5]


def test_too_little_memory_says_what_to_lower(tmp_path):
    class Greedy(Next):
        def forward(self, batch):
            return torch.empty(1 << 50)

    with pytest.raises(TilthError) as raised:
        train(tmp_path, model=Greedy(Network(0.0)))
    assert "memory ran out in step 1" in raised.value.what and "Lower batch_size (now 4" in raised.value.hint


def test_a_full_disk_keeps_the_checkpoint_before_and_space_lets_it_go_on(tmp_path):
    expected = tmp_path / "expected.pt"
    assert run(tmp_path / "whole", expected).returncode == 0
    settings = {**PLAIN, "checkpoint_every": 10, "log_every": 10}  # the log must stay below the limit set here
    first = run(tmp_path / "run", "", training=settings, kill_at=30, signal="SIGKILL")
    assert first.returncode == -signal.SIGKILL
    size = (tmp_path / "run/checkpoints/step-00000020/model.safetensors").stat().st_size
    full = run(tmp_path / "run", "", training=settings, limit=size - 1)
    assert full.returncode == 2 and "could not be written" in full.stdout, full.stdout
    assert "The checkpoint of step 20 is whole" in full.stdout
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())] == ["step-00000010", "step-00000020"]
    assert run(tmp_path / "run", tmp_path / "end.pt", training=settings).returncode == 0
    assert same(torch.load(tmp_path / "end.pt"), torch.load(expected))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_it_leaves_a_checkpoint_and_goes_on(tmp_path, name):
    expected = tmp_path / "expected.pt"
    assert run(tmp_path / "whole", expected).returncode == 0
    stopped = run(tmp_path / "run", "", kill_at=13, signal=name)
    assert stopped.returncode == 2 and "stopped at step 14 of 40, with a checkpoint" in stopped.stdout, stopped.stdout
    assert "The same command again goes on" in stopped.stdout
    assert [step for step, _ in checkpoints.checkpoints(tmp_path / "run")] == [14]
    assert run(tmp_path / "run", tmp_path / "end.pt").returncode == 0
    assert same(torch.load(tmp_path / "end.pt"), torch.load(expected))


def test_a_full_disk_that_stops_the_log_is_the_users_matter_too(tmp_path):
    full = run(tmp_path / "run", "", limit=1024)
    assert full.returncode == 2 and "no room on the disk" in full.stdout, full.stdout


def test_interrupted_is_a_users_error_and_signals_are_given_back(tmp_path):
    class Asks(Next):
        def after_step(self, step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as raised:
        train(tmp_path, model=Asks(Network(0.0)))
    assert raised.value.step == 3 and signal.getsignal(signal.SIGINT) is before


def test_another_runs_folder_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(TilthError, match="this folder holds a run with other settings: training was"):
        train(tmp_path, lr=0.02)
    with pytest.raises(TilthError, match="seed was 3 and is 4"):
        train(tmp_path, seed=4)
    with pytest.raises(TilthError, match="count was 30 and is 31"):
        train(tmp_path, examples=Sequences(31))
    train(tmp_path, log_every=5, keep_checkpoints=1)  # how it is watched may change


def test_another_models_checkpoint_is_refused(tmp_path):
    train(tmp_path)
    model = objective()
    model.model.more = torch.nn.Linear(2, 2)
    with pytest.raises(TilthError, match="belongs to another model"):
        train(tmp_path, model=model)


def test_a_log_cut_short_by_a_kill_is_mended(tmp_path):
    model, _ = train(tmp_path)
    whole = lines(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    again, _ = train(tmp_path)
    assert lines(tmp_path) == whole and same(weights(model), weights(again))
