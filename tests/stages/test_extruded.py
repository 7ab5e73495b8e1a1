"""Extruded pictures: every plane shows the object, turned evenly through the depth, with noise that changes evenly."""

import numpy as np
import pytest
from scipy.ndimage import rotate

from tests.images import digits
from tilth.batches.images.pictures import PixelRows
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.stages.extruded import Extruded, extruded


class Fixed:
    """A generator whose uniform draws are given and whose noise is of its own."""

    def __init__(self, *draws):
        self.draws, self.rng = list(draws), np.random.default_rng(0)

    def uniform(self, low, high, count):
        return np.array(self.draws.pop(0)) * high

    def normal(self, size):
        return self.rng.normal(size=size)


def cover():
    picture = np.zeros((9, 9))
    picture[2:7, 4] = picture[2, 4:7] = 1.0
    return picture


def test_without_turn_and_noise_every_plane_is_the_picture():
    volume = extruded(cover(), 9, 0.0, 0.0, np.random.default_rng(0))
    assert volume.shape == (9, 9, 9) and volume.dtype == np.uint8
    assert all(np.array_equal(volume[:, :, depth], 255 * cover()) for depth in range(9))


def test_planes_turn_evenly_from_the_first_angle_to_the_last():
    volume = extruded(cover(), 9, 90.0, 0.0, Fixed([-1.0, 1.0], [0.0, 0.0]))
    wanted = [rotate(cover(), angle, reshape=False, order=1) for angle in np.linspace(-90, 90, 9)]
    np.testing.assert_allclose(volume / 255, np.stack(wanted, -1).clip(0, 1), atol=0.01)
    np.testing.assert_array_equal(volume[:, :, 0], 255 * np.rot90(cover(), -1))


def test_noise_changes_evenly_with_the_depth():
    volume = extruded(np.full((4, 4), 0.5), 64, 0.0, 0.2, Fixed([0.0, 0.0], [0.0, 0.5]))[16:48, 16:48] / 255
    np.testing.assert_allclose(volume.std((0, 1)), np.linspace(0, 0.1, 64), atol=0.01)


def test_the_stage_makes_copies_of_every_row_with_its_label(tmp_path):
    rows = digits(tmp_path / "data").filter("draw < 0.02")
    context = Context(tmp_path, corpora={"digits": rows})
    metrics = Extruded(data="digits", copies=2, size=8).run(context)
    made = Corpus.open(tmp_path / "corpus.lance")
    assert metrics["rows"] == made.count() == 2 * rows.count()
    assert made.table(["label"])["label"].to_pylist() == np.repeat(rows.table(["label"])["label"].to_pylist(), 2).tolist()
    examples = use("batches", "tiles").build().build(made, None, context)
    assert isinstance(examples, PixelRows) and examples.sample.size == (8, 8, 8) and examples.pixels.dtype == np.uint8
    assert len(np.unique(examples.pixels, axis=0)) == made.count()
    (tmp_path / "others").mkdir()
    Extruded(data="digits", copies=2, size=8, first=1).run(Context(tmp_path / "others", corpora={"digits": rows}))
    others = Corpus.open(tmp_path / "others/corpus.lance").table(["number", "array"])
    assert others["number"][0].as_py() == 1 and others["array"][0] != made.table(["array"])["array"][0]
    with pytest.raises(TilthError, match="nothing to extrude"):
        Extruded(data="digits").run(Context(tmp_path / "none", corpora={"digits": rows.filter("label = 11")}))
