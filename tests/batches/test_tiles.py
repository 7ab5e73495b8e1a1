"""Tiles: arrays as training pixels, gaps filled, values clipped to bytes where asked."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tilth.batches.images.pictures import natural
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.errors import TilthError


def corpus(folder, arrays, nodata=None):
    columns = {"id": [str(i) for i in range(len(arrays))], "array": pa.array([packed(a) for a in arrays], pa.large_binary())}
    if nodata is not None:
        columns["nodata_value"] = pa.array(nodata, pa.float64())
    table = pa.table(columns)
    return Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)


def pixels(folder, arrays, nodata=None, **settings):
    return use("batches", "tiles", **settings).build().build(corpus(folder, arrays, nodata), None, Context(folder))


def scenes(count=6, channels=3, size=(8, 8), dtype=np.float32):
    rng = np.random.default_rng(0)
    return [
        (1000 * (1 + np.arange(channels)).reshape(-1, 1, 1) + 200 * rng.normal(size=(channels, *size))).astype(dtype)
        for _ in range(count)
    ]


def test_values_stay_in_their_own_scale(tmp_path):
    arrays = scenes()
    rows = pixels(tmp_path, arrays)
    assert isinstance(rows.pixels, np.memmap) and rows.pixels.dtype == np.float32 and np.array_equal(rows.pixels, arrays)
    assert rows.sample.channels == 3 and rows.sample.size == (8, 8)
    np.testing.assert_allclose(rows.sample.mean, np.mean(arrays, (0, 2, 3), dtype=np.float64), rtol=1e-6)
    batch = rows.batch(np.array([4, 1]), Noise(0, np.array([0, 1])))
    assert torch.equal(batch.pixel_values, torch.from_numpy(np.stack([arrays[4], arrays[1]]))) and batch["keys"].shape == (2,)


def test_what_is_missing_becomes_the_mean_of_its_channel(tmp_path):
    arrays = scenes()
    arrays[2][1, 3, 3], arrays[2][1, 0, 0] = np.nan, np.inf
    found = pixels(tmp_path, arrays).pixels
    known = np.concatenate([a[1][np.isfinite(a[1])] for a in arrays])
    assert found[2, 1, 3, 3] == pytest.approx(known.mean(dtype=np.float64), rel=1e-6) == found[2, 1, 0, 0]
    assert np.isfinite(found).all()


def test_a_value_that_means_no_data_is_missing(tmp_path):
    arrays = scenes(dtype=np.uint16)
    arrays[0][:, :2] = 0
    found = pixels(tmp_path, arrays, nodata=[0.0] * 5 + [None]).pixels
    expected = np.concatenate([arrays[0][0, 2:].ravel(), *(a[0].ravel() for a in arrays[1:])]).mean()
    assert found[0, 0, 0, 0] == pytest.approx(expected, rel=1e-6) and found[0, 0, 3, 3] == arrays[0][0, 3, 3]


def test_clipping_is_the_papers_bytes(tmp_path):
    arrays = scenes(count=20)
    rows = pixels(tmp_path, arrays, clip=2.0)
    stacked = np.stack(arrays).astype(np.float64)
    mean, std = stacked.mean((0, 2, 3), keepdims=True), stacked.std((0, 2, 3), keepdims=True)
    expected = np.rint(((stacked - (mean - 2 * std)) / (4 * std)).clip(0, 1) * 255)
    assert rows.pixels.dtype == np.uint8 and np.abs(rows.pixels - expected).max() <= 1
    assert (rows.pixels == expected).mean() > 0.999 and rows.pixels.min() == 0 and rows.pixels.max() == 255
    shown = natural(rows.batch(np.arange(20), Noise(0, np.arange(20))).pixel_values)
    assert shown.mean().item() == pytest.approx(0.5, abs=0.01)
    alike = pixels(tmp_path / "other", arrays[:2], clip=2.0, mean=mean.ravel().tolist(), std=std.ravel().tolist())
    assert np.abs(alike.pixels - expected[:2]).max() == 0


def test_bytes_stay_bytes_and_the_middle_is_kept(tmp_path):
    arrays = [np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)] * 3
    assert np.array_equal(pixels(tmp_path, arrays, size=[4, 3]).pixels[0], arrays[0][:, 1:5, 1:4])
    volumes = [np.random.default_rng(0).normal(size=(1, 6, 8, 6))]
    found = pixels(tmp_path / "volumes", volumes, size=4)
    assert found.pixels.shape == (1, 1, 4, 4, 4) and np.allclose(found.pixels[0], volumes[0][:, 1:5, 2:6, 1:5])


def test_with_an_overlap_all_of_an_array_becomes_tiles_that_know_their_row(tmp_path):
    arrays = [*scenes(count=2, size=(10, 8)), *scenes(count=1, size=(4, 8))]
    rows = pixels(tmp_path, arrays, size=4, overlap=2)
    starts = [(row, a, b) for row in (0, 1) for a in (0, 2, 4, 6) for b in (0, 2, 4)] + [(2, 0, b) for b in (0, 2, 4)]
    expected = [arrays[row][:, a : a + 4, b : b + 4] for row, a, b in starts]
    assert np.array_equal(rows.pixels, expected)
    assert [row.tolist() for row in rows.rows(np.arange(len(rows)))] == [[row] for row, _, _ in starts]


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        ([np.zeros((3, 8, 8)), np.zeros((3, 8, 6))], {}, "a tile of 3x8x6 among tiles of 3x8x8"),
        ([np.zeros((3, 8, 8)), np.zeros((4, 8, 8))], {}, "a tile of 4x8x8 among tiles of 3x8x8"),
        ([np.zeros((3, 8, 8))], {"size": 9}, "has no part of 9x9"),
        ([np.zeros((3, 8, 8), np.complex64)], {}, "not channels of real numbers"),
        ([np.zeros(8)], {}, "not channels of real numbers"),
        ([np.zeros((3, 8, 8))], {"mean": [0.0], "std": [1.0]}, "one number for each of 3 channels"),
        ([np.zeros((3, 8, 8))], {"mean": [0.0] * 3}, "go together"),
        ([np.zeros((3, 8, 8))], {"overlap": 2}, "need a 'size'"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, arrays, settings, message):
    with pytest.raises(TilthError, match=message):
        pixels(tmp_path, arrays, **settings)


def test_other_columns_and_broken_bytes_are_told(tmp_path):
    table = pa.table({"id": ["a"], "array": pa.array([packed(np.zeros((1, 4, 4)))[:-9]], pa.large_binary())})
    broken = Corpus.write(tmp_path / "broken.lance", table.to_batches(), table.schema)
    with pytest.raises(TilthError, match="not a whole array"):
        use("batches", "tiles").build().build(broken, None, Context(tmp_path))
    other = Corpus.write(tmp_path / "other.lance", table.select(["id"]).to_batches(), table.select(["id"]).schema)
    with pytest.raises(TilthError, match="no column 'array'"):
        use("batches", "tiles").build().build(other, None, Context(tmp_path))
