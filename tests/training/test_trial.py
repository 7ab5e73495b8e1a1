"""Budgets in floating-point operations: what is counted, and that counting leaves nothing behind."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.doubles import FLOPS, LENGTH, Sequences, objective, same, weights
from tilth.contracts import Batch, Loss, Objective, Sample, use
from tilth.errors import TilthError
from tilth.training.lineage import Lineage
from tilth.training.loop import Budget, Training, fit
from tilth.training.parallel import world
from tilth.training.trial import Trial
from tilth.training.update import Update


def train(folder, budget, model=None, examples=None, **training):
    model = model or objective()
    settings = Training(**{"batch_size": 4, "lr": 0.01, "log_every": 1, **training})
    return model, fit(model, examples or Sequences(30), training=settings, budget=budget, folder=folder, seed=3)


@pytest.mark.parametrize("training", [{}, {"accumulate": 3}, {"compile": True}, {"precision": "bf16"}])
def test_products_are_counted_exactly_and_training_begins_as_if_nothing_had_been(tmp_path, training):
    of_a_step = FLOPS * 4 * LENGTH * training.get("accumulate", 1)
    model, fitted = train(tmp_path / "flops", Budget(flops=3 * of_a_step), **training)
    again, _ = train(tmp_path / "steps", Budget(steps=3), **training)
    assert fitted.steps == 3 and same(weights(model), weights(again))
    assert train(tmp_path / "more", Budget(flops=3.01 * of_a_step), **training)[1].steps == 4
    assert train(tmp_path / "flops", Budget(flops=3 * of_a_step), model=objective(), **training)[1].steps == 3  # done: kept


class Pictures:
    """Noise as pictures of 16 x 16."""

    def __len__(self):
        return 64

    def batch(self, indices, noise):
        pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (len(indices), 3, 16, 16), dtype=np.uint8))
        return Batch(pixel_values=pixels, keys=torch.from_numpy(noise.keys()), tokens=len(indices), samples=len(indices))


def flops(name, **settings):
    """Of one step of an encoder of width 32, 4 blocks and 16 patches, 8 pictures."""
    encoder = use("backbone", "patches", width=32, depth=4, heads=2, patch=4).build().build(Sample(3, (16, 16)))
    made = use("pretrain", name, **settings).build(encoder)
    update = Update(made, Training(batch_size=8), world(), "none", compiled=False)
    trial = Trial(update, torch.optim.SGD(made.parameters()), Pictures())
    return trial.flops(Lineage(len(Pictures()), 0, 8, 1, 1, steps=0))


MACS = 4 * (12 * 32 * 32 * 16 + 2 * 16 * 16 * 32) * 8  # of the encoder's blocks, forward, 8 pictures


def test_views_teachers_and_what_is_left_out_are_counted():
    heads = {"head_width": 32, "head_out": 16}
    simclr = flops("simclr", **heads)
    assert simclr == pytest.approx(2 * 3 * 2 * MACS, rel=0.06)  # two views; products of two numbers are two operations
    byol = flops("byol", **heads)
    assert byol == pytest.approx(2 * (3 + 1) * 2 * MACS, rel=0.06)  # a teacher's views cost a third
    mae = flops("mae", decoder_width=8, decoder_depth=1, decoder_heads=1)
    assert 1 < mae / (2 * 3 * MACS / 4) < 1.35  # a quarter of the patches, and a small decoder


def test_what_multiplies_nothing_cannot_have_such_a_budget(tmp_path):
    class Shift(Objective):
        def forward(self, batch):
            return Loss((self.model.bias - batch.input_ids.float().mean()).square().mean())

    with pytest.raises(TilthError, match="no floating-point operations were counted"):
        train(tmp_path, Budget(flops=1e9), Shift(nn.Linear(2, 3)))
