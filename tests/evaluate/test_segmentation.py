"""Pooled confusion matrices against scikit-learn, merged classes, ignored pixels, groups."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs

from tests.floods import BATCHES, floods
from tilth.backbones.folder import save
from tilth.context import Context
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.evaluate.segmentation import SegmentationScores, confusion, confusions

SCORES = SegmentationScores(test="test", merge={"water": [1, 2]}, groups=("event", "climate"), together=5, batches=BATCHES)


def labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 3, (12, 8, 8), generator=generator)
    called = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, (truth + 1) % 3)
    return truth, called


def test_every_number_is_scikit_learns():
    truth, called = labels()
    found = SCORES.metrics(confusion(called, truth, 3).sum(0))
    y, p = truth.flatten().numpy(), called.flatten().numpy()
    for i, name in enumerate(SCORES.names):
        expected = {
            "accuracy": theirs.accuracy_score(y == i, p == i), "precision": theirs.precision_score(y == i, p == i),
            "recall": theirs.recall_score(y == i, p == i), "f1": theirs.f1_score(y == i, p == i), "iou": theirs.jaccard_score(y == i, p == i),
        }  # fmt: skip
        assert {key: found[f"{key}_{name}"] for key in expected} == pytest.approx(expected)
    assert found["miou"] == pytest.approx(theirs.jaccard_score(y, p, average="macro"))
    assert found["f1_water"] == pytest.approx(theirs.f1_score(y > 0, p > 0)) and found["accuracy"] == (y == p).mean()


def test_batches_do_not_matter_and_ignored_pixels_count_for_nothing():
    truth, called = labels()
    truth[3] = -100
    truth[:, :2] = -100
    whole = confusion(called, truth, 3).sum(0)
    parts = sum(confusion(called[a:b], truth[a:b], 3).sum(0) for a, b in ((0, 1), (1, 7), (7, 12)))
    assert torch.equal(whole, parts) and whole.sum() == (truth != -100).sum()
    other = torch.where(truth == -100, (called + 1) % 3, called)
    assert torch.equal(confusion(other, truth, 3).sum(0), whole)


def test_who_swaps_two_kinds_of_water_knows_water():
    truth, _ = labels()
    swapped = torch.tensor([0, 2, 1])[truth]
    found = SCORES.metrics(confusion(swapped, truth, 3).sum(0))
    assert found["f1_water"] == 1 and found["miou"] < 0.5 and found["f1_flood"] == 0


def test_the_mean_is_over_classes_that_are_there_or_found():
    truth = torch.tensor([[0, 0, 1, 1]])
    found = SCORES.metrics(confusion(truth, truth, 3).sum(0))
    assert found["miou"] == 1 and "f1_flood" not in found and found["accuracy_flood"] == 1
    assert SCORES.metrics(torch.zeros(3, 3, dtype=torch.int64)) == {}


def test_a_model_is_scored_in_all_and_by_group(tmp_path):
    corpus = floods(tmp_path / "floods")
    context = Context(tmp_path / "stage", corpora={"test": corpus})
    context.folder.mkdir()
    rows = BATCHES.build().build(corpus, None, context)
    torch.manual_seed(0)
    network = use("backbone", "unet", classes=3, widths=(4, 8)).build().build(rows.sample)
    save(network, None, tmp_path / "model", {})
    found = SCORES(tmp_path / "model", context).metrics
    each = confusions(network, rows, 3, 16)
    assert found == pytest.approx(SCORES.metrics(each.sum(0))) and 0 < found["accuracy"] < 1
    events, climates = (json.loads(line) for line in (context.folder / "exhibits.jsonl").read_text().splitlines())
    assert [row[0] for row in events["rows"]] == [f"event-0{i}" for i in range(4)] and len(climates["rows"]) == 3
    assert sum(row[1] for row in events["rows"]) == sum(row[1] for row in climates["rows"]) == each.sum()
    first = SCORES.metrics(each[np.array(corpus.table(["event"])["event"].to_pylist()) == "event-01"].sum(0))
    assert events["rows"][1][2] == pytest.approx(first["miou"], abs=1e-4)
    with pytest.raises(TilthError, match="3 classes and 'names' 2"):
        SegmentationScores(test="test", names=["dry", "wet"], batches=BATCHES)(tmp_path / "model", context)
    with pytest.raises(TilthError, match="no column 'zone'"):
        SegmentationScores(test="test", groups=("zone",), batches=BATCHES)(tmp_path / "model", context)
    with pytest.raises(TilthError, match="gives new names"):
        SegmentationScores(test="test", merge={"water": [3]})
