"""Split and merge terms of known labellings, sliding windows, and a network that is scored in all."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import entropy
from torch import nn

from tests.sections import crops, sections
from tilth.backbones.folder import save
from tilth.context import Context
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.evaluate import instances
from tilth.evaluate.agglomeration import segmented
from tilth.evaluate.instances import InstanceScores, affinity_scores, object_scores, predicted, shared_voxels
from tilth.pretrain.images.affinity import affinities

IDS = np.repeat([1, 2, 3, 9], [8, 4, 2, 2]).reshape(4, 4)


def scored(ids, objects):
    return object_scores([shared_voxels(ids, objects)])


def test_the_same_objects_by_other_names_are_perfect():
    renamed = np.array([0, 40, 7, 1, 0, 0, 0, 0, 0, 3])[IDS]
    perfect = {"voi_split": 0, "voi_merge": 0, "voi": 0, "arand": 0}
    assert scored(IDS, renamed) == pytest.approx(perfect, abs=1e-12)
    assert scored(np.array([[1, 2]]), np.array([[3, 1]])) == pytest.approx(perfect, abs=1e-12)  # no two voxels are together


def test_one_object_for_all_is_merged_by_the_entropy_of_the_ids_in_bits():
    found = scored(IDS, np.ones_like(IDS))
    bits = entropy([8, 4, 2, 2], base=2)
    assert bits == 1.75 and found["voi_split"] == 0 and found["voi_merge"] == pytest.approx(bits) == found["voi"]
    # Of 16 * 15 pairs in one object, 8 * 7 + 4 * 3 + 2 + 2 are of one id: precision 0.3, recall 1.
    assert found["arand"] == pytest.approx(1 - 2 * 0.3 / 1.3)


def test_an_object_for_every_voxel_is_split():
    found = scored(IDS, np.arange(16).reshape(4, 4))
    assert (
        found["arand"] == 1
        and found["voi_merge"] == 0
        and found["voi_split"] == pytest.approx(8 / 16 * 3 + 4 / 16 * 2 + 4 / 16 * 1)
    )


def test_background_and_what_is_unlabelled_do_not_count():
    objects = np.arange(16).reshape(4, 4) // 4
    ids = IDS.copy()
    ids[2:] = [[0, 0, -1, -1], [0, -1, 0, -1]]
    assert scored(ids, objects) == scored(ids[:2], objects[:2])
    assert scored(np.zeros((2, 2), int), np.ones((2, 2), int)) == {}


def test_arrays_are_pooled_and_their_ids_are_their_own():
    tables = [shared_voxels(IDS, np.ones_like(IDS)), shared_voxels(np.full((4, 4), -1), IDS), shared_voxels(IDS, IDS)]
    found = object_scores(tables)
    together = scored(np.stack([IDS, IDS + 100]), np.stack([np.full_like(IDS, 50), IDS]))
    assert found == pytest.approx(together) and found["voi_merge"] == pytest.approx(1.75 / 2)


def test_boundaries_are_the_class_of_no_affinity():
    found = affinity_scores(torch.tensor([[6, 2], [1, 11]]))
    assert found == pytest.approx(
        {"boundary_f1": 12 / 15, "boundary_iou": 6 / 9, "affinity_f1": 22 / 25, "affinity_iou": 11 / 14}
    )
    assert affinity_scores(torch.zeros(2, 2, dtype=torch.int64)) == {}


class Pointwise(nn.Module):
    """Logits (axes) that hang on a voxel's own value alone, or on nothing."""

    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = (torch.tensor(values) for values in (scale, shift))

    def forward(self, pixel_values):
        wide = (-1, *[1] * (pixel_values.dim() - 2))
        return SimpleNamespace(logits=pixel_values * self.scale.reshape(wide) + self.shift.reshape(wide))


@pytest.mark.parametrize("scale", [[0.0, 0.0], [3.0, -1.0]])
@pytest.mark.parametrize(("size", "overlap"), [([3, 8, 8], [1, 4, 5]), ([7, 20, 20], [0, 0, 0]), ([2, 9, 30], [0, 0, 7])])
def test_windows_of_a_constant_network_are_one_pass(scale, size, overlap):
    network = Pointwise(scale, [0.4, -1.2])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 7, 19, 17)).astype(np.uint8)
    whole = network(torch.from_numpy(pixels)[None].float() / 255).logits.sigmoid()[0].numpy()
    found = predicted(network, pixels, 2, size, overlap, together=3)
    assert found.shape == (2, 7, 19, 17) and np.allclose(found, whole, atol=1e-6)
    with pytest.raises(TilthError, match="2 affinities for 3 axes"):
        predicted(network, pixels, 3, size, overlap)


def exhibits(context):
    return [json.loads(line) for line in (context.folder / "exhibits.jsonl").read_text().splitlines()]


def prepared(folder, **settings):
    corpus = crops(folder, sections(folder), size=(4, 32, 32), **settings)
    context = Context(folder / "stage", corpora={"test": corpus})
    context.folder.mkdir()
    return use("batches", "instances").build().build(corpus, None, context), context


def test_a_model_is_scored_in_all(tmp_path):
    rows, context = prepared(tmp_path)
    torch.manual_seed(0)
    encoder = use("backbone", "conv_stages", widths=[6], strides=[1])
    network = use("backbone", "dense_classifier", classes=2, encoder=encoder).build().build(rows.sample)
    save(network, None, tmp_path / "model", {})
    given = {"test": "test", "size": [2, 16, 16], "overlap": [1, 8, 8], "axes": (1, 2)}
    metrics = InstanceScores(**given)(tmp_path / "model", context).metrics
    assert set(metrics) == {
        "affinity_f1", "affinity_iou", "boundary_f1", "boundary_iou", "voi_split", "voi_merge", "voi", "arand"
    }  # fmt: skip
    assert all(np.isfinite(value) for value in metrics.values())
    assert InstanceScores(**given, together=1)(tmp_path / "model", context).metrics == pytest.approx(metrics, abs=1e-3)
    tables = []
    for pixels, ids in zip(rows.pixels, rows.ids, strict=True):
        objects = segmented(predicted(network, pixels, 2, [2, 16, 16], [1, 8, 8]), (1, 2))
        tables.append(shared_voxels(ids, objects))
    assert object_scores(tables) == pytest.approx({key: metrics[key] for key in object_scores(tables)})
    picture = exhibits(context)[0]
    shown = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
    assert picture["kind"] == "picture" and shown.width == 4 * 64 + 3 * 4 and shown.height == 64
    with pytest.raises(TilthError, match="2 affinities for 3 axes"):
        InstanceScores(**{**given, "axes": None})(tmp_path / "model", context)
    with pytest.raises(TilthError, match="cannot overlap by 16"):
        InstanceScores(test="test", size=[2, 16, 16], overlap=[1, 8, 16])


def test_who_knows_the_affinities_is_perfect_and_unlabelled_sections_do_not_count(tmp_path, monkeypatch):
    rows, context = prepared(tmp_path, labelled=[2, 4, 12])
    whole, _ = prepared(tmp_path / "whole")
    truths = iter([affinities(torch.from_numpy(whole.ids[[index]]), (1, 2))[0][0].numpy() for index in range(len(rows))])
    monkeypatch.setattr(instances, "load", lambda model: SimpleNamespace(model=None))
    monkeypatch.setattr(instances, "predicted", lambda *given: next(truths))
    found = InstanceScores(test="test", axes=(1, 2))(tmp_path, context).metrics
    assert found == pytest.approx({key: float(key.startswith(("affinity", "boundary"))) for key in found}, abs=1e-12)
    # What it says of unlabelled sections changes nothing; of a labelled one it does.
    for section, changed in ((0, False), (1, True)):
        wrong = [affinities(torch.from_numpy(whole.ids[[index]]), (1, 2))[0][0].numpy() for index in range(len(rows))]
        wrong[0][:, section] = 1 - wrong[0][:, section]
        monkeypatch.setattr(instances, "predicted", lambda *given, wrong=iter(wrong): next(wrong))
        other = InstanceScores(test="test", axes=(1, 2))(tmp_path, context).metrics
        assert (other["affinity_f1"] < 0.99) == (other["voi"] > 0.01) == changed
