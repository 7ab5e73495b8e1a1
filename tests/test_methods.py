"""What every registered objective must do, whoever wrote it: train, round-trip, repeat, and train on two processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.methods import OBJECTIVES, OF_PATCHES, problem
from tilth.contracts import Noise, use
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training

PLAIN = Training(lr=1e-2, batch_size=8, schedule=use("schedule", "constant"), log_every=1, compile=False, checkpoint_seconds=None)
MOVING = {
    "moco_v2",
    "dino",
    "voco",
}  # what they are compared with moves away while they learn: their own tests say what they learn
every_objective = pytest.mark.parametrize(("kind", "name"), OBJECTIVES, ids=[f"{kind}-{name}" for kind, name in OBJECTIVES])


def losses(folder: Path) -> list[float]:
    """Logged losses, step by step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@every_objective
def test_training_lowers_the_loss(kind, name, tmp_path):
    objective, examples = problem(kind, name, tmp_path)
    training = replace(PLAIN, lr=1e-3) if name in {*OF_PATCHES, "attentive_probe", "voco", "uni4eye"} else PLAIN
    fit(objective, examples, training=training, budget=Budget(steps=12), folder=tmp_path / "fit", seed=0)
    logged = losses(tmp_path / "fit")
    assert np.isfinite(logged).all() and (name in MOVING or np.mean(logged[-3:]) < logged[0])


@every_objective
def test_the_same_seed_gives_the_same_bits_and_another_does_not(kind, name, tmp_path):
    def trained(seed: int, folder: Path) -> torch.Tensor:
        objective, examples = problem(kind, name, tmp_path / "data", seed=0)
        fit(objective, examples, training=PLAIN, budget=Budget(steps=3), folder=folder, seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])

    first = trained(0, tmp_path / "a")
    assert torch.equal(first, trained(0, tmp_path / "b")) and not torch.equal(first, trained(1, tmp_path / "c"))


@every_objective
def test_the_state_round_trips(kind, name, tmp_path):
    objective, examples = problem(kind, name, tmp_path)
    fit(objective, examples, training=PLAIN, budget=Budget(steps=2), folder=tmp_path / "fit", seed=0)
    fresh, _ = problem(kind, name, tmp_path, seed=1)
    fresh.load_state_dict(objective.state_dict())
    indices = np.arange(4)
    batch = examples.batch(indices, Noise(0, indices))
    assert torch.equal(objective.eval()(batch).total, fresh.eval()(batch).total)


@every_objective
def test_every_row_of_an_example_is_a_row_of_the_corpus_and_batches_do_not_depend_on_their_company(kind, name, tmp_path):
    _, examples = problem(kind, name, tmp_path)
    rows = np.concatenate(examples.rows(np.arange(len(examples))))
    assert rows.min() >= 0 and rows.max() < 320
    pair = examples.batch(np.array([0, 1]), Noise(7, np.array([10, 11])))
    alone = examples.batch(np.array([1]), Noise(7, np.array([11])))
    seen = [batch.get("forget") or batch.get("pictures") or batch for batch in (pair, alone)]
    together, single = (batch.get("input_ids", batch.get("pixel_values")) for batch in seen)
    width = min(together.shape[1], single.shape[1])
    assert torch.equal(together[1, :width], single[0, :width])


@pytest.mark.parametrize("name", sorted({*OF_PATCHES} - {"rotation", "hi_end_mae", "sat_mae_pp", "sar_jepa", "roma"}))
def test_signs_of_collapse_are_told_of_held_out_batches_alone(name, tmp_path):
    objective, examples = problem("pretrain", name, tmp_path)
    indices = np.arange(8)
    batch = examples.batch(indices, Noise(0, indices))
    told = objective.eval()(batch).parts
    assert 1 <= told["effective_rank"] <= 8 and told["uniformity"] <= 1e-6
    assert "effective_rank" not in objective.train()(batch).parts


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_every_objective_as_one_does_with_the_doubled_batch(tmp_path, parallel):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.methods_worker",
        str(tmp_path),
        parallel,
    ]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    for kind, name in OBJECTIVES:
        objective, examples = problem(kind, name, tmp_path / f"{kind}-{name}-one")
        doubled = Training(
            lr=1e-3, batch_size=8, schedule=use("schedule", "constant"), log_every=1, compile=False, checkpoint_seconds=None
        )
        fit(objective, examples, training=doubled, budget=Budget(steps=4), folder=tmp_path / "one" / f"{kind}-{name}", seed=0)
        one, two = losses(tmp_path / "one" / f"{kind}-{name}"), losses(tmp_path / "two" / f"{kind}-{name}")
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6), (kind, name)
