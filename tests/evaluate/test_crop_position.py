"""Position of crops: an encoder that sees place tells it, one that sees nothing does not, and heads come from the checkpoint."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tilth.backbones.folder import load
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.evaluate.crop_position import CropPosition, located, positions
from tilth.evaluate.upsampling_error import trained
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training

CROPS = {"crop": 4, "random_crops": 3}


def ramps(folder, count):
    """Volumes whose two channels are their first two coordinates, and noise: place can be read off a crop's means."""
    rng = np.random.default_rng(0)
    x, y, _ = np.meshgrid(*[np.arange(n) / 12 for n in (12, 12, 4)], indexing="ij")
    arrays = [packed((np.stack([x, y]) + 0.02 * rng.normal(size=(2, 12, 12, 4))).astype(np.float32)) for _ in range(count)]
    table = pa.table({"id": [str(n) for n in range(count)], "array": pa.array(arrays, pa.large_binary())})
    return Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)


@pytest.fixture
def world(tmp_path):
    context = Context(tmp_path / "stage", corpora={"scans": ramps(tmp_path, 40)})
    context.folder.mkdir()
    return context


def pretrained(context, objective, steps=1):
    Pretrain(
        data="scans", budget=Budget(steps=steps), objective=objective, batches=use("batches", "tiles"),
        backbone=use("backbone", "conv_stages", widths=[8, 8], strides=[1, 2]), training=Training(lr=3e-3, batch_size=8, compile=False),
    ).run(context)  # fmt: skip
    return context.folder / "model"


def test_place_that_can_be_read_is_found_and_heads_are_those_of_the_run(world):
    still = use("views", "volumes", flip=0, rot90=0)
    model = pretrained(world, use("pretrain", "voco", **CROPS, head_width=32, head_out=16, views=still), 60)
    found = CropPosition(test="scans", **CROPS)(model, world).metrics
    assert found["head_position_accuracy"] > 0.8 and found["head_other_position_accuracy"] > 0.8
    assert found["position_accuracy"] > 0.6 and found["head_base_cosine"] < 0.3
    again = CropPosition(test="scans", **CROPS)(model, world).metrics
    assert again == found
    objective = trained(model)
    assert all(torch.equal(a, b) for a, b in zip(objective.model.parameters(), load(model).model.parameters(), strict=True))


def test_another_objective_has_no_heads_to_ask(world):
    model = pretrained(world, use("pretrain", "simclr", head_width=8, head_out=8, views=use("views", "crop_pairs", **CROPS)))
    found = CropPosition(test="scans", **CROPS)(model, world).metrics
    assert set(found) == {"position_accuracy", "other_position_accuracy", "base_cosine"}


def test_metrics_on_vectors_made_by_hand():
    bases = torch.eye(9).expand(2, 9, 9)
    labels = torch.zeros(2, 2, 9)
    labels[0, 0, 4], labels[0, 1, 2], labels[1, 0, 7] = 1, 1, 1
    labels[1, 1, 0] = labels[1, 1, 1] = 0.5  # a tie: both are right
    crops = labels.clone()
    crops[1, 1, 0] = 0.4
    assert located(crops, bases, labels) == 1.0
    assert located(crops.roll(1, 0), bases, labels) < 0.6
    both = torch.cat([bases, crops], 1)
    shifted = torch.stack([both[0], torch.cat([bases[1].roll(1, 0), crops[1]])])
    found = positions(shifted, shifted, labels)
    # The second volume's bases stand in other places: its crops find the wrong ones, and so do the first's among them.
    assert found == {"position_accuracy": 0.5, "other_position_accuracy": pytest.approx(0.5), "base_cosine": 0.0}
    assert positions(torch.ones(2, 11, 4), torch.ones(2, 11, 4), labels)["base_cosine"] == pytest.approx(1)


def test_an_encoder_that_sees_nothing_is_at_chance():
    labels = torch.nn.functional.one_hot(torch.randint(9, (300, 4)), 9).float()
    assert located(torch.randn(300, 4, 8), torch.randn(300, 9, 8), labels) == pytest.approx(1 / 9, abs=0.03)
