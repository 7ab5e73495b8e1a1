"""Other scalings of radar channels than by mean and deviation: as numbers worked out by hand, and who takes part in them."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.floods import floods
from tilth.backbones.standardise import Standardise
from tilth.batches.images.segmentation import Segmentation
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed, unpacked
from tilth.errors import TilthError

MEAN, STD = [0.0953, 0.0264], [0.0427, 0.0215]


def built(folder, arrays, masks, events=None, dem=None, validity=None, **settings):
    """Examples of given arrays and masks."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(arrays)
    columns = {
        "id": [str(i) for i in range(count)],
        "array": [packed(np.asarray(a, np.float32)) for a in arrays],
        "mask": pa.array([None if m is None else packed(m) for m in masks], pa.large_binary()),
    }
    if events is not None:
        columns["event"] = events
    if dem is not None:
        columns["dem"] = [packed(dem)] * count
    if validity is not None:
        columns["valid"] = pa.array([None if v is None else packed(v) for v in validity], pa.large_binary())
    table = pa.table(columns)
    corpus = Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)
    return Segmentation(**settings).build(corpus, None, Context(folder))


def pixels(rows):
    return rows.batch(np.arange(len(rows)), Noise(0, np.arange(len(rows)))).pixel_values.double().numpy()


def seen(rows):
    """What a fresh network computes with."""
    return Standardise(rows.sample.channels, rows.sample.mean, rows.sample.std)(torch.from_numpy(pixels(rows))).numpy()


def radar(count=4, dates=2, size=6, seed=0):
    values = np.random.default_rng(seed).uniform(0.01, 0.3, (count, 2 * dates, size, size)).astype(np.float32)
    return list(values), [np.zeros((size, size), np.uint8)] * count


def test_none_leaves_values_and_terrain_alone(tmp_path):
    arrays, masks = radar()
    dem = np.arange(36, dtype=np.float32).reshape(6, 6)
    rows = built(tmp_path, arrays, masks, dem=dem, dates=2, terrain="dem", scaling=use("scaling", "none"))
    assert rows.sample.mean == (0,) * 5 and rows.sample.std == (1,) * 5
    assert np.array_equal(seen(rows)[:, :4], np.float32(arrays)) and np.array_equal(seen(rows)[2, 4], dem)


def test_min_max_is_of_each_event_date_and_channel_with_the_clamp_as_largest(tmp_path):
    arrays, masks = radar()
    events = ["b", "a", "b", "a"]
    given = {"dates": 2, "scaling": use("scaling", "min_max")}
    values = np.stack(arrays).astype(np.float64)
    low, high = np.empty((2, 4, 4, 1, 1))
    for pair in ([0, 2], [1, 3]):
        low[pair], high[pair] = (f(values[pair], (0, 2, 3), keepdims=True) for f in (np.min, np.max))
    free = built(tmp_path / "a", arrays, masks, events, **given)
    np.testing.assert_allclose(seen(free), (values - low) / (high - low), atol=1e-6)
    assert seen(free).min() == 0 and seen(free).max() == pytest.approx(1) and free.sample.mean == (0,) * 4
    clamped = built(tmp_path / "b", arrays, masks, events, clamp=0.15, **given)
    np.testing.assert_allclose(seen(clamped), (values.clip(0, 0.15) - low) / (0.15 - low), atol=1e-6)
    alone = built(tmp_path / "c", arrays, masks, dates=2, scaling=use("scaling", "min_max", by=None))
    low, high = values.min((2, 3), keepdims=True), values.max((2, 3), keepdims=True)
    np.testing.assert_allclose(seen(alone), (values - low) / (high - low), atol=1e-6)


def test_min_max_to_a_range_and_back(tmp_path):
    arrays, masks = radar(count=3)
    scaling = use("scaling", "min_max", range=(-1.0, 3.0))
    found = seen(built(tmp_path, arrays, masks, ["e"] * 3, dates=2, clamp=0.15, scaling=scaling))
    assert found.min() == -1 and found.max() == pytest.approx(3)
    values = np.stack(arrays).clip(0, 0.15).astype(np.float64)
    low = values.min((0, 2, 3), keepdims=True)
    np.testing.assert_allclose((found + 1) / 4 * (0.15 - low) + low, values, atol=1e-6)  # what was clamped comes back


def test_a_ratio_has_its_own_smallest_value_and_1_for_largest_where_channels_are_clamped(tmp_path):
    arrays, masks = radar(count=2, dates=1)
    given = {"channels": ["ratio", "vh"], "clamp": 0.4, "scaling": use("scaling", "min_max")}
    found = seen(built(tmp_path, arrays, masks, ["e"] * 2, **given))
    values = np.stack(arrays).astype(np.float64)
    ratio, vh = values[:, 1] / (values[:, 0] + 1e-7), values[:, 1]
    np.testing.assert_allclose(found[:, 0], (ratio - ratio.min()) / (1 - ratio.min()), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], (vh - vh.min()) / (0.4 - vh.min()), atol=1e-6)


def test_pixels_that_count_for_nothing_have_no_say(tmp_path):
    plain, masks = radar(count=3)
    valid = np.ones((6, 6), bool)
    valid[2, 2] = False
    odd = [array.copy() for array in plain]
    odd[0][:, 0, 0], odd[1][:, 2, 2], odd[2][:, 5, 5] = 99.0, -99.0, np.nan
    ignored = masks[0].copy()
    ignored[0, 0] = 3
    for name, scaling in (("min_max", use("scaling", "min_max")), ("log", use("scaling", "log"))):
        given = {"dates": 2, "scaling": scaling, "missing": 200.0, "valid": "valid"}
        found = []
        for part, arrays in enumerate((plain, odd)):
            # The same pixels are left out: by their class, by the mask of what is valid, and because they are no numbers.
            nan = [array.copy() for array in arrays]
            nan[2][:, 5, 5] = np.nan
            rows = built(
                tmp_path / name / str(part), nan, [ignored, *masks[1:]], ["e"] * 3, validity=[None, valid, None], **given
            )
            found.append(seen(rows))
            mask = rows.batch(np.arange(3), Noise(0, np.arange(3))).mask
            assert mask[0, 0, 0] == mask[1, 2, 2] == -100 and (mask == -100).sum() == 2
        same = np.ones((3, 1, 6, 6), bool)
        same[0, :, 0, 0] = same[1, :, 2, 2] = False
        assert np.array_equal(*(np.where(same, part, 0) for part in found)) and np.isfinite(found[1]).all()
        same[2, :, 5, 5] = False
        counted = np.where(same, found[1], 0.5)
        assert counted.min() == 0 and counted.max() == pytest.approx(1)  # 200 would be the largest


def test_log_is_a_shift_above_zero_then_the_logarithm_between_percentiles(tmp_path):
    arrays, masks = radar(count=2, dates=1)
    arrays[0] = arrays[0] - 0.1  # has values below 0
    found = seen(built(tmp_path / "a", arrays, masks, scaling=use("scaling", "log", percentiles=(0, 100), range=(0, 2))))
    for row, array in enumerate(arrays):
        for channel, values in enumerate(array.astype(np.float64)):
            logged = np.log(values - values.min() + 1e-7 if values.min() <= 0 else values)
            expected = 2 * (logged - logged.min()) / (logged.max() - logged.min())
            np.testing.assert_allclose(found[row, channel], expected, atol=1e-5)
    cut = seen(built(tmp_path / "b", arrays, masks, scaling=use("scaling", "log")))
    assert cut.min() == 0 and cut.max() == 1
    logged = np.log(arrays[1][0].astype(np.float64))
    low, high = np.percentile(logged, [2, 98])
    np.testing.assert_allclose(cut[1, 0], ((logged - low) / (high - low)).clip(0, 1), atol=1e-5)
    assert (cut[1, 0] == 0).sum() >= 1 and (cut[1, 0] == 1).sum() >= 1  # the ends are clipped


def test_terrain_is_standardised_whatever_the_channels_are(tmp_path):
    arrays, masks = radar(count=2)
    dem = np.full((6, 6), 1504.2695, np.float32)
    given = {"dates": 2, "terrain": "dem", "scaling": use("scaling", "min_max"), "mean": [93.4313], "std": [1410.8382]}
    rows = built(tmp_path / "a", arrays, masks, ["e"] * 2, dem, **given)
    assert rows.sample.mean == (0, 0, 0, 0, 93.4313) and seen(rows)[:, 4] == pytest.approx(1)
    with pytest.raises(TilthError, match="2 and 2 numbers"):
        built(tmp_path / "b", arrays, masks, ["e"] * 2, dem, **{**given, "mean": MEAN, "std": STD})


def test_what_is_missing_from_the_terrain_becomes_its_mean(tmp_path):
    arrays, masks = radar(count=2)
    dem = np.full((6, 6), 50.0, np.float32)
    dem[1, 1] = np.nan
    for terrain, expected in (("dem", 50.0), ("slope", 0.0)):
        found = pixels(built(tmp_path / terrain, arrays, masks, dem=dem, dates=2, clamp=0.15, terrain=terrain))
        assert (found[:, 4] == expected).all()


def test_nan_becomes_the_clamp_or_what_is_said_and_rows_without_a_known_pixel_stay_finite(tmp_path):
    array = np.array([[[0.0, np.nan, 0.3]], [[np.nan, 0.1, 0.0]]], np.float32)
    masks = [np.zeros((1, 3), np.uint8)]
    constants = {"mean": MEAN, "std": STD}
    found = seen(built(tmp_path / "a", [array], masks, clamp=0.15, **constants))[0, :, 0]
    expected = [(np.array([0, 0.15, 0.15]) - MEAN[0]) / STD[0], (np.array([0.15, 0.1, 0]) - MEAN[1]) / STD[1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    free = pixels(built(tmp_path / "b", [array], masks, missing=200.0))[0, :, 0]
    np.testing.assert_allclose(free, [[0, 200, 0.3], [200, 0.1, 0]], rtol=1e-6)
    zero = pixels(built(tmp_path / "c", [array], masks, clamp=0.15, missing=0.0))[0, :, 0]
    np.testing.assert_allclose(zero, [[0, 0, 0.15], [0, 0.1, 0]], rtol=1e-6)
    ratio = pixels(built(tmp_path / "d", [array], masks, missing=200.0, channels=["vv", "vh", "ratio"]))[0, 2, 0]
    np.testing.assert_allclose(ratio, [200, 200, 0], rtol=1e-6)
    empty = np.full((2, 1, 3), np.nan, np.float32)
    for scaling in ("min_max", "log"):
        rows = built(tmp_path / scaling, [empty, array], masks * 2, ["none", "some"], clamp=0.15, scaling=use("scaling", scaling))
        assert np.isfinite(seen(rows)).all()


def test_complex_products_have_the_constants_of_their_bands(tmp_path):
    """Phases and amplitudes of both channels: no clamp, no channels to choose, four constants for each of three dates."""
    mean, std = [0.022367, 39.242, 81.130, 0.043526], [1.2843, 25.6152, 58.0151, 1.2844]
    arrays = [np.random.default_rng(0).normal(size=(12, 4, 4)).astype(np.float32) for _ in range(2)]
    rows = built(tmp_path, arrays, [None, None], dates=3, keep=[2, 0, 1], mean=mean, std=std)
    assert rows.sample.channels == 12 and rows.sample.mean == tuple(mean) * 3
    given = np.stack(arrays)[:, [8, 9, 10, 11, *range(8)]]
    wide = [np.reshape(numbers * 3, (12, 1, 1)) for numbers in (mean, std)]
    np.testing.assert_allclose(seen(rows), (given - wide[0]) / wide[1], rtol=1e-5, atol=1e-6)


def test_events_of_floods_cover_the_same_range_each(tmp_path):
    corpus = floods(tmp_path)
    given = {"dates": 3, "scaling": use("scaling", "min_max")}
    found = pixels(Segmentation(**given).build(corpus, None, Context(tmp_path)))
    table = corpus.table(["event", "mask"])
    events = np.array(table["event"].to_pylist())
    valid = np.stack([unpacked(mask) for mask in table["mask"].to_pylist()]) != 3
    for event in set(events):
        values = found[events == event].swapaxes(0, 1)[:, valid[events == event]]
        assert values.min(1) == pytest.approx(0, abs=1e-6) and values.max(1) == pytest.approx(1)


def test_what_cannot_be_is_told(tmp_path):
    arrays, masks = radar(count=2)
    for settings, events, message in (
        ({"scaling": use("scaling", "min_max")}, None, "no column 'event'"),
        ({"scaling": use("scaling", "min_max")}, ["a", None], "the row has no 'event'"),
        ({"valid": "inside"}, None, "no column 'inside'"),
        ({"clamp": 0.15, "missing": 200.0}, None, "outside the clamp"),
        ({"scaling": use("scaling", "min_max", range=(1, 1))}, None, "holds one value"),
        ({"scaling": use("scaling", "log", percentiles=(98, 2))}, None, "percentiles"),
    ):
        with pytest.raises(TilthError, match=message):
            built(tmp_path / message.replace(" ", ""), arrays, masks, events, dates=2, **settings)
    inside = {"validity": [np.ones((2, 2), bool)] * 2, "valid": "valid"}
    with pytest.raises(TilthError, match="'valid' of"):
        built(tmp_path / "shape", arrays, masks, dates=2, **inside)
