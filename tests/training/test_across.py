"""Losses over the rows of several processes are those of one process with all rows, and so are their gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.across_worker import LOSSES, results
from tilth.training import across


@pytest.fixture(scope="module")
def rows():
    return torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def two(rows, tmp_path_factory):
    """What two gloo processes with half of the rows each found."""
    folder = tmp_path_factory.mktemp("across")
    torch.save(rows, folder / "rows.pt")
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.training.across_worker", str(folder)]
    root, threads = Path(__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", *launch], cwd=root, capture_output=True, text=True, env=threads, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_find_the_loss_and_the_gradients_of_one_with_all_rows(name, rows, two):
    loss, gradient = results(rows)[name]
    halves = [found[name] for found, _ in two]
    assert [half[0].item() for half in halves] == pytest.approx([loss.item()] * 2, rel=1e-5)
    assert gradient.abs().max() > 1e-4
    assert torch.allclose(torch.cat([half[1] for half in halves], 1), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("batch_norm", "gather")])
def test_outside_training_each_process_keeps_to_its_own_rows(name, rows, two):
    for rank, (_, alone) in enumerate(two):
        half = rows[:, rank * 4 : rank * 4 + 4]
        assert alone[name] == pytest.approx(LOSSES[name](*half, False).item(), rel=1e-6)
        assert alone[name] != pytest.approx(LOSSES[name](*rows, False).item(), rel=1e-4)


def test_alone_nothing_is_added():
    rows = torch.randn(3, 2)
    assert across.gather(rows, True) is rows and across.total(rows, True) is rows
    assert (across.size(), across.rank(), across.count(rows, True)) == (1, 0, 3)


def test_a_batch_norm_of_one_process_is_torchs():
    rows = torch.randn(6, 4)
    ours, theirs = across.BatchNorm(4), nn.BatchNorm1d(4)
    assert torch.equal(ours(rows), theirs(rows))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(rows), theirs.eval()(rows))
    assert ours(rows.bfloat16()).dtype == torch.float32
