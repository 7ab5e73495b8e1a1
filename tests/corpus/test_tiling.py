"""Tiles cover everything, are all whole, and put together again are what they were cut from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.corpus.arrays import packed, unpacked
from tilth.corpus.tiling import stitched, windows
from tilth.errors import TilthError


@st.composite
def cuts(draw):
    axes = draw(st.integers(1, 3))
    shape = draw(st.lists(st.integers(1, 23), min_size=axes, max_size=axes))
    size = draw(st.lists(st.integers(1, 9), min_size=axes, max_size=axes))
    overlap = [draw(st.integers(0, s - 1)) for s in size]
    return shape, size, overlap


@settings(max_examples=150, deadline=None)
@given(cuts(), st.sampled_from(["gaussian", "uniform"]), st.integers(0, 2**32 - 1))
def test_every_pixel_is_covered_and_tiles_put_together_are_the_array(cut, weights, seed):
    shape, size, overlap = cut
    values = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    covered = np.zeros(shape, int)
    tiles = []
    for window in windows(shape, size, overlap):
        assert [w.stop - w.start for w in window] == [min(s, n) for s, n in zip(size, shape)]
        covered[window] += 1
        tiles.append(([w.start for w in window], values[(slice(None), *window)]))
    assert covered.min() >= 1
    joined = stitched(tiles[::-1], shape, weights=weights)
    assert joined.dtype == np.float32 and np.abs(joined - values).max() < 1e-6 * max(1, np.abs(values).max())
    if not any(overlap) and all(n % s == 0 or n < s for n, s in zip(shape, size)):
        assert covered.max() == 1


def test_the_last_tile_is_moved_back():
    assert [w[0].start for w in windows([10], 4)] == [0, 4, 6]
    assert [w[0].start for w in windows([10], 4, 2)] == [0, 2, 4, 6]
    assert [(w.start, w.stop) for window in windows([3], 4) for w in window] == [(0, 3)]
    assert [tuple(w.start for w in window) for window in windows([5, 4], [3, 2])] == [(0, 0), (0, 2), (2, 0), (2, 2)]


def test_overlaps_are_weighted_means():
    tiles = [((0,), np.zeros(8, np.float32)), ((4,), np.ones(8, np.float32))]
    assert np.allclose(stitched(tiles, [12], weights="uniform"), [0] * 4 + [0.5] * 4 + [1] * 4)
    joined = stitched(tiles, [12])
    at = np.arange(8) - 3.5
    weight = np.exp(-0.5 * at**2)  # an eighth of 8 is 1
    expected = weight[:4] / (weight[:4] + weight[4:])  # of the second tile, in the overlap
    assert np.allclose(joined[4:8], expected, atol=1e-6) and np.all(np.diff(joined[4:8]) > 0)


def test_what_no_tile_covers_is_nan_and_doubles_stay_doubles():
    joined = stitched([((1,), np.array([3.0, 4.0]))], [4])
    assert joined.dtype == np.float64 and np.isnan(joined[[0, 3]]).all() and np.allclose(joined[1:3], [3, 4])


@pytest.mark.parametrize(
    "call",
    [
        lambda: list(windows([8], 4, 4)),
        lambda: list(windows([8], 4, -1)),
        lambda: list(windows([8, 8], [4])),
        lambda: stitched([], [4]),
        lambda: stitched([((3,), np.ones(2))], [4]),
        lambda: stitched([((0, 0), np.ones(2))], [4]),
    ],
)
def test_what_cannot_be_is_said(call):
    with pytest.raises(TilthError):
        call()


@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", ">i2", "<f4", ">f8", "c8", "f2"])
def test_arrays_come_back_as_they_were(dtype):
    array = (np.arange(24) % 7).reshape(2, 3, 4).astype(dtype)
    for given_ in (array, array.transpose(2, 0, 1), array[:, ::-1], array[:0], np.asarray(array[0, 0, 1])):
        back = unpacked(packed(given_))
        assert back.dtype == np.dtype(dtype).newbyteorder("=") and back.shape == given_.shape and np.array_equal(back, given_)
        assert not back.flags.writeable


def test_arrays_of_objects_and_broken_ones_are_refused():
    with pytest.raises(ValueError, match="not a type of numbers"):
        packed(np.array([{}, None]))
    import io

    stream = io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a type of numbers"):
        unpacked(stream.getvalue())
    with pytest.raises(ValueError, match="not a whole array"):
        unpacked(packed(np.ones(5))[:-1])
    with pytest.raises(ValueError):
        unpacked(b"\x80\x04.")
