"""Linear probes of voxels per layer, and Dice against scikit-learn."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from tilth.backbones.folder import save
from tilth.backbones.patches import Patches
from tilth.context import Context
from tilth.contracts import Sample
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.errors import TilthError
from tilth.evaluate.voxel_probe import VoxelProbe, dice, probe


def scans(folder, mask=None):
    """Volumes whose bright patches are class 1, so that a token knows the class of its voxels."""
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.integers(0, 2, (2, 2, 2)), np.ones((4, 4, 4))).astype(np.uint8) for _ in range(12)]
    arrays = [(m[None] + 0.1 * rng.normal(size=(1, 8, 8, 8))).astype(np.float32) for m in masks]
    columns = {"id": [str(i) for i in range(12)], "number": list(range(12)), "array": [packed(a) for a in arrays]}
    if mask is not False:
        columns["mask"] = [packed(m if mask is None else mask) for m in masks]
    table = pa.table(columns)
    rows = Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)
    context = Context(folder / "stage", corpora={"train": rows.filter("number < 6"), "test": rows.filter("number >= 6")})
    context.folder.mkdir()
    torch.manual_seed(0)
    model = Patches(width=24, depth=3, heads=2, patch=4, class_token=True).build(Sample(1, (8, 8, 8), (0.5,), (0.5,)))
    save(model, None, folder / "model", {"history": []})
    return folder / "model", context


def test_what_a_token_knows_is_found_in_every_layer(tmp_path):
    model, context = scans(tmp_path)
    scores = VoxelProbe(train="train", test="test", layers=[1, 3])(model, context).metrics
    assert set(scores) == {"dice_last", "raw_dice", "dice_layer_1", "dice_layer_3", "dice_layers"}
    assert min(scores.values()) > 0.95 and scores["dice_layers"] == pytest.approx(
        (scores["dice_layer_1"] + scores["dice_layer_3"]) / 2
    )


def test_dice_is_the_f1_score_of_each_class():
    labels, truth = torch.randint(0, 4, (2, 5, 6, 7, 8)).unbind(0)
    expected = f1_score(truth.flatten(), labels.flatten(), average=None)[1:].mean()
    assert dice(labels, truth, 4) == pytest.approx(expected, rel=1e-6) and dice(truth, truth, 4) == 1.0


def test_the_probe_agrees_with_logistic_regression():
    torch.manual_seed(0)
    x, asked = torch.randn(800, 6) * 3 + 1, torch.randn(2000, 6) * 3 + 1
    direction = torch.randn(6, 3)
    classes, truth = ((values - 1) @ direction for values in (x, asked))
    found = probe(x, classes.argmax(1)[:, None], 3, asked, 60)[:, 0]
    theirs = torch.from_numpy(LogisticRegression(C=100).fit(x, classes.argmax(1)).predict(asked))
    assert (found == theirs).float().mean() > 0.97 and (found == truth.argmax(1)).float().mean() > 0.95


def test_voxels_of_a_patch_have_maps_of_their_own():
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    classes = (x[:, :3] > 0).long()  # voxel i is a matter of feature i
    assert (probe(x, classes, 2, x, 60) == classes).float().mean() > 0.98


def test_what_cannot_be_probed_is_told(tmp_path):
    model, context = scans(tmp_path)
    with pytest.raises(TilthError, match="has 3 blocks"):
        VoxelProbe(train="train", test="test", layers=[4])(model, context)
    for name, mask, message in (("none", False, "no column 'mask'"), ("small", np.zeros((4, 4, 4), np.uint8), "a mask of uint8")):
        (tmp_path / name).mkdir()
        model, context = scans(tmp_path / name, mask)
        with pytest.raises(TilthError, match=message):
            VoxelProbe(train="train", test="test", layers=[1])(model, context)
