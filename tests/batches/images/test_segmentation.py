"""Arrays of several dates with masks: radar values, dates, terrain, ignored pixels; crops that dates and masks share."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.floods import BATCHES, floods
from tilth.backbones.standardise import Standardise
from tilth.batches.draws import uniform
from tilth.batches.images import sar
from tilth.batches.images.segmentation import Segmentation
from tilth.batches.images.shared_crop import cropped
from tilth.batches.images.views import MAE
from tilth.context import Context
from tilth.contracts import Noise
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed, unpacked
from tilth.errors import TilthError


def built(folder, arrays, masks, **settings):
    """Examples of given arrays and masks, each array with the elevation 3x + 4y."""
    folder.mkdir(parents=True, exist_ok=True)
    slanted = 3.0 * np.arange(arrays[0].shape[-1]) + 4.0 * np.arange(arrays[0].shape[-2])[:, None]
    table = pa.table(
        {
            "id": [str(i) for i in range(len(arrays))],
            "array": [packed(a) for a in arrays],
            "mask": pa.array([None if m is None else packed(m) for m in masks], pa.large_binary()),
            "dem": [packed(slanted.astype(np.float32))] * len(arrays),
        }
    )
    corpus = Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)
    return Segmentation(**settings).build(corpus, None, Context(folder))


def first(rows):
    return rows.batch(np.arange(len(rows)), Noise(0, np.arange(len(rows))))


def test_zero_and_nan_after_clamp_and_standardising_and_back():
    values = np.array([0.0, np.nan, 0.5, -1.0, 0.1, np.inf]).reshape(1, 1, 6).repeat(2, 0)
    kept = sar.clamped(values)
    assert kept[0, 0].tolist() == pytest.approx([0, 0.15, 0.15, 0, 0.1, 0.15])
    scale = Standardise(2, sar.GRD_MEAN, sar.GRD_STD)
    found = scale(torch.from_numpy(kept)[None])[0, :, 0]
    assert found[:, 0].tolist() == pytest.approx([-0.0953 / 0.0427, -0.0264 / 0.0215])
    assert found[:, 1].tolist() == pytest.approx([(0.15 - 0.0953) / 0.0427, (0.15 - 0.0264) / 0.0215])
    assert torch.allclose(scale.restored(found[None, :, None]), torch.from_numpy(kept)[None], atol=1e-6, rtol=0)


def test_channels_and_dates_are_counted_as_they_should_be(tmp_path):
    array = np.random.default_rng(0).uniform(0.01, 0.14, (6, 8, 8)).astype(np.float32)
    array[0, 0, 0] = np.nan
    mask = np.zeros((8, 8), np.uint8)
    given = {"dates": 3, "clamp": 0.15}
    whole = first(built(tmp_path / "a", [array], [mask], **given)).pixel_values
    assert whole.shape == (1, 6, 8, 8) and whole[0, 0, 0, 0] == pytest.approx(0.15)
    pair = first(built(tmp_path / "b", [array], [mask], **given, keep=[2, 0])).pixel_values
    assert torch.equal(pair[0], whole[0, [4, 5, 0, 1]])
    # 2 * dates + 1 with terrain; its slope is sqrt(3^2 + 4^2) metres for each pixel of 10.
    for terrain, expected in (("slope", 0.5), ("dem", 3.0)):
        more = first(built(tmp_path / terrain, [array], [mask], **given, terrain=terrain)).pixel_values
        assert more.shape == (1, 7, 8, 8) and torch.equal(more[:, :6], whole)
        assert more[0, 6, 0, 1] == pytest.approx(expected)
    ratio = first(built(tmp_path / "c", [array], [mask], **given, channels=["vh", "ratio"])).pixel_values
    assert torch.equal(ratio[:, 0], whole[:, 1]) and torch.allclose(ratio[:, 5], whole[:, 5] / (whole[:, 4] + 1e-7))


def test_constants_are_those_of_every_date_and_of_the_terrain(tmp_path):
    array, mask = np.zeros((6, 4, 4), np.float32), np.zeros((4, 4), np.uint8)
    given = {"dates": 3, "keep": [0, 2], "terrain": "dem", "mean": [1.0, 2.0, 9.0], "std": [3.0, 4.0, 8.0]}
    sample = built(tmp_path / "a", [array], [mask], **given).sample
    assert sample.mean == (1, 2, 1, 2, 9) and sample.std == (3, 4, 3, 4, 8)
    with pytest.raises(TilthError, match="2 and 2 numbers"):
        built(tmp_path / "b", [array], [mask], **{**given, "mean": [1.0, 2.0], "std": [1.0, 1.0]})


def test_masks_become_classes_and_what_is_missing_is_the_first(tmp_path):
    mask = np.array([[0, 1, 2, 3], [7, 7, 1, 0]], np.uint8)
    rows = built(tmp_path, [np.zeros((1, 2, 4), np.float32)] * 2, [mask, None], classes=(7, 1, 0, 2), ignore=(3,))
    batch = first(rows)
    assert batch.mask[0].tolist() == [[2, 1, 3, -100], [0, 0, 1, 2]] and not batch.mask[1].any()
    assert batch.mask.dtype == torch.int64 and batch.samples == 2
    with pytest.raises(TilthError, match=r"the mask has \[7\]"):
        built(tmp_path / "other", [np.zeros((1, 2, 4), np.float32)], [mask])


def test_without_a_clamp_nan_becomes_the_mean_and_bytes_stay_bytes(tmp_path):
    array, mask = np.array([[[1.0, np.nan, 3.0]]], np.float32), np.zeros((1, 3), np.uint8)
    assert first(built(tmp_path / "a", [array], [mask])).pixel_values[0, 0, 0].tolist() == [1, 2, 3]
    assert first(built(tmp_path / "b", [np.ones((1, 1, 3), np.uint8)], [mask])).pixel_values.dtype == torch.uint8


def test_what_cannot_be_is_told(tmp_path):
    array, mask = np.zeros((6, 4, 4), np.float32), np.zeros((4, 4), np.uint8)
    for arrays, masks, settings, message in (
        ([array], [mask], {"dates": 4}, "not 4 dates"),
        ([array], [mask[:2]], {}, "a mask of uint8"),
        ([array, array[:, :2]], [mask, mask[:2]], {}, "among arrays"),
        ([array[:3]], [mask], {"channels": ["vv"]}, "two channels, not 3"),
    ):
        with pytest.raises(TilthError, match=message):
            built(tmp_path / message.split()[-1], arrays, masks, **settings)
    for settings, message in (
        ({"dates": 3, "keep": [3]}, "cannot be kept"),
        ({"classes": (0, 3)}, "one class or ignored"),
        ({"mean": [1.0]}, "go together"),
    ):
        with pytest.raises(TilthError, match=message):
            Segmentation(**settings)


def test_a_crop_is_shared_by_dates_and_mask_and_is_that_of_the_views():
    keys = torch.arange(40)
    down, across = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = torch.stack([across, down, across, down])[None].repeat(40, 1, 1, 1) / 32
    mask = (torch.arange(32)[:, None] * 32 + torch.arange(32))[None].repeat(40, 1, 1)
    made, cut = cropped(images, mask, keys, scale=(0.2, 1.0), flip=0.5)
    assert torch.equal(made[:, :2], made[:, 2:]) and (made[0] != images[0]).any()
    # Classes are places here, so they say where every pixel came from: within a pixel of what the ramps say.
    for channel, place in ((0, cut % 32), (1, cut // 32)):
        assert (made[:, channel] * 32 - place).abs().max() < 1.01
    assert torch.allclose(made, MAE(scale=(0.2, 1.0), flip=0.5)(images, keys)[0].clamp(0, 31 / 32), atol=1e-6)
    flipped = uniform(keys, "crop", 1)[:, 0] < 0.5
    assert torch.equal((cut[:, 0, 0] % 32) > (cut[:, 0, -1] % 32), flipped) and flipped.any() and not flipped.all()
    alone = cropped(images[7:8], mask[7:8], keys[7:8], scale=(0.2, 1.0), flip=0.5)
    assert torch.equal(alone[0][0], made[7]) and torch.equal(alone[1][0], cut[7])


def test_a_crop_without_a_valid_pixel_keeps_the_sample():
    keys = torch.arange(64)
    images, mask = torch.rand(64, 2, 16, 16), torch.full((64, 16, 16), -100)
    mask[:, :4, :4] = 1
    made, cut = cropped(images, mask, keys, scale=(0.2, 0.3), flip=0.5)
    assert (cut == 1).flatten(1).any(1).all()
    kept = (made == images).flatten(1).all(1)
    assert kept.sum() > 10 and not kept.all() and torch.equal(cut[kept], mask[kept])


def test_floods_are_what_they_say(tmp_path):
    corpus = floods(tmp_path)
    assert corpus.kind == "scene" and corpus.count() == 16
    table = corpus.table(["event", "climate", "array", "mask"])
    assert len(set(table["event"].to_pylist())) == 4
    values = np.stack([unpacked(row) for row in table["array"].to_pylist()]).reshape(16, 3, 2, 16, 16)
    mask = np.stack([unpacked(row) for row in table["mask"].to_pylist()])
    assert set(np.unique(mask)) == {0, 1, 2, 3} and np.array_equal(np.isnan(values).all((1, 2)), mask == 3)
    mean = lambda date, label: values[:, date, 0][mask == label].mean()
    assert mean(0, 2) > 0.5 * mean(0, 0) and mean(2, 2) < 0.4 * mean(2, 0)  # dry, then flooded
    assert max(mean(date, 1) for date in range(3)) < 0.4 * mean(0, 0)
    assert mean(2, 2) / mean(2, 1) == pytest.approx(1, abs=0.5)
    batch = first(BATCHES.build().build(corpus, None, Context(tmp_path)))
    assert torch.equal(batch.mask, torch.from_numpy(np.where(mask == 3, -100, mask.astype(np.int64))))
    assert batch.pixel_values.max() <= 0.15 and batch.pixel_values.isfinite().all()
