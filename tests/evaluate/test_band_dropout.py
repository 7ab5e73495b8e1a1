"""Missing bands: which and how many, and an encoder that does not look at them."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tilth.backbones.folder import save
from tilth.backbones.patches import Patches
from tilth.context import Context
from tilth.contracts import Noise, Sample
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.errors import TilthError
from tilth.evaluate.band_dropout import BandDropout, features, without


@pytest.fixture
def world(tmp_path):
    rng = np.random.default_rng(0)
    green = rng.uniform(0.1, 0.9, 120)
    arrays = [
        (rng.uniform(0.4, 0.6, (6, 8, 8)) + np.reshape([0, -0.3 * g, 0, 0.3 * g, 0, 0], (6, 1, 1))).astype(np.float32)
        for g in green
    ]
    table = pa.table({"id": [str(i) for i in range(120)], "number": list(range(120)), "array": [packed(a) for a in arrays]})
    rows = Corpus.write(tmp_path / "corpus.lance", table.to_batches(), table.schema)
    context = Context(tmp_path / "stage", corpora={"train": rows.filter("number < 80"), "test": rows.filter("number >= 80")})
    context.folder.mkdir()
    return context


def saved(context, groups=None):
    torch.manual_seed(0)
    sample = Sample(6, (8, 8), (0.5,) * 6, (0.15,) * 6)
    save(
        Patches(width=32, depth=1, heads=2, patch=4, groups=groups).build(sample), None, context.folder / "model", {"history": []}
    )
    return context.folder / "model"


def test_vegetation_is_read_from_all_bands_and_less_from_some(world):
    benchmark = BandDropout(train="train", test="test", red=1, near_infrared=3, dropped=3, per_class=20)
    scores = benchmark(saved(world), world).metrics
    assert scores["accuracy"] > 0.7 and scores["dropped_accuracy"] < scores["accuracy"] - 0.05
    assert scores["drop"] == pytest.approx(scores["accuracy"] - scores["dropped_accuracy"])


def test_every_tile_loses_as_many_bands_as_asked_each_its_own():
    pixels, mean = torch.rand(400, 6, 4, 4) + 1, torch.zeros(6, 1, 1)
    found = without(pixels, torch.arange(400) * 11, 2, mean)
    missing = (found == 0).all(-1).all(-1)
    assert (missing.sum(1) == 2).all() and ((missing.float().mean(0) - 1 / 3).abs() < 0.1).all()
    assert torch.equal(found[~missing], pixels[~missing]) and torch.equal(without(pixels, torch.arange(400), 0, mean), pixels)


def test_bands_in_no_group_are_not_missed(world):
    network = (
        Patches(width=32, depth=1, heads=2, patch=4, groups=[[1], [3]]).build(Sample(6, (8, 8), (0.5,) * 6, (0.15,) * 6)).eval()
    )
    rows = BandDropout(train="train", test="test").batches.build().build(world.corpus("test"), None, world)
    whole = features(network, rows, 0)
    keys = rows.batch(np.arange(40), Noise(0, np.arange(40)))["keys"]
    spared = (without(torch.ones(40, 6, 1, 1), keys, 2, torch.zeros(6, 1, 1))[:, [1, 3], 0, 0] == 1).all(1).numpy()
    assert 5 < spared.sum() < 35
    same = (features(network, rows, 0, dropped=2) == whole).all(1)
    assert np.array_equal(same, spared)


def test_bands_that_are_not_there_are_told(world):
    with pytest.raises(TilthError, match="not as many bands"):
        BandDropout(train="train", test="test", near_infrared=7)(saved(world), world)
