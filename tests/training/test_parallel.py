"""Two processes against one with the doubled batch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.doubles import FLOPS, LENGTH, same
from tests.training.test_loop import PLAIN, lines
from tests.training.test_trouble import run

ROOT = Path(__file__).parents[2]


def two(folder, out, **said):
    said = {"count": 30, "folder": str(folder), "out": str(out), "budget": {"steps": 20}, "dropout": 0.0, **said}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.training.worker",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, json.dumps(said)], cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does_with_the_doubled_batch(tmp_path, parallel):
    one = {"training": {**PLAIN, "batch_size": 8, "accumulate": 2}, "budget": {"steps": 20}, "dropout": 0.0, "evaluate": True}
    assert run(tmp_path / "one", tmp_path / "one.pt", **one).returncode == 0
    training = {**PLAIN, "batch_size": 4, "accumulate": 2, "parallel": parallel, "ema": None}
    budget = {"flops": 20 * FLOPS * 16 * LENGTH}  # 20 steps; what was counted must leave nothing behind
    done = two(tmp_path / "two", tmp_path / "two.pt", training=training, budget=budget, evaluate=True)
    assert done.returncode == 0, done.stderr
    for alone, together in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for name in alone.keys() & {"loss", "held_out_loss", "tokens", "samples", "step", "gradient_norm"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-5), (alone, together)
    expected, weights = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert expected.keys() == weights.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_go_on_bitwise(tmp_path, parallel):
    training = {**PLAIN, "parallel": parallel, "checkpoint_every": 6, "ema": 0.9}
    assert two(tmp_path / "whole", tmp_path / "whole.pt", training=training, dropout=0.2).returncode == 0
    assert two(tmp_path / "cut", "", training=training, dropout=0.2, kill_at=10, signal="SIGKILL").returncode != 0
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000006"]
    done = two(tmp_path / "cut", tmp_path / "cut.pt", training=training, dropout=0.2)
    assert done.returncode == 0, done.stderr
    assert same(torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "cut.pt"))


@pytest.mark.slow
def test_two_processes_stop_together_when_asked(tmp_path):
    stopped = two(tmp_path, "", training={**PLAIN, "checkpoint_seconds": None}, kill_at=7, signal="SIGINT")
    # Which step it is depends on when the signals arrive; that it is the same one for both does not.
    said = re.findall(r"stopped at step (\d+) of 20", stopped.stdout)
    assert len(said) == 2 and len(set(said)) == 1 and 7 <= int(said[0]) < 20, stopped.stdout + stopped.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{int(said[0]):08d}"]
