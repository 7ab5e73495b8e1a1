"""Crops of stacked sections: the same as cut from the whole stack, ids that no two sections share, and what cannot be."""

import os

import numpy as np
import pytest
from scipy.ndimage import label

from tests.sections import crops, drawn, sections
from tilth.context import Context
from tilth.corpus import Corpus, catalogue
from tilth.corpus.arrays import unpacked
from tilth.corpus.ingest import ingest
from tilth.corpus.tiling import windows
from tilth.errors import TilthError
from tilth.stages import sections as stage
from tilth.stages.sections import Sections


def arrays(corpus, column):
    return [unpacked(data) for data in corpus.table([column])[column].to_pylist()]


def stacked(count=8, side=32):
    """Grey values and ids of the whole volume."""
    grey, cells = drawn(count, side)
    ids, known = np.zeros(cells.shape, np.int64), 0
    for section, drawn_cells in zip(ids, cells, strict=True):
        found, number = label(drawn_cells)
        section[:] = np.where(found, found + known, 0)
        known += number
    return grey, ids


@pytest.mark.parametrize(
    ("size", "overlap"), [((3, 16, 16), (0, 0, 0)), ((4, 20, 12), (3, 5, 11)), ((8, 32, 32), (0, 0, 0)), ((1, 7, 32), (0, 1, 0))]
)
def test_crops_are_those_of_the_whole_stack(tmp_path, size, overlap):
    corpus = crops(tmp_path, sections(tmp_path, backwards=True), size=size, overlap=overlap)
    grey, ids = stacked()
    expected = list(windows(grey.shape, size, overlap))
    assert corpus.count() == len(expected) and corpus.kind == "volume"
    table = corpus.table(["id", "number"])
    assert table["number"].to_pylist() == list(range(len(expected))) and table["id"][0].as_py() == "crop-000000"
    for window, array, mask in zip(expected, arrays(corpus, "array"), arrays(corpus, "mask"), strict=True):
        assert array.dtype == np.uint8 and np.array_equal(array, grey[window][None])
        assert mask.dtype == np.int32 and np.array_equal(mask, ids[window])


def test_no_two_sections_share_an_id_and_corners_do_not_connect(tmp_path):
    [ids] = arrays(crops(tmp_path, sections(tmp_path), size=(8, 32, 32)), "mask")
    sets = [set(np.unique(section)) - {0} for section in ids]
    assert len(set.union(*sets)) == sum(map(len, sets)) == ids.max()
    _, cells = drawn()
    assert np.array_equal(ids == 0, cells == 0)
    diagonal = np.array([[[9, 0], [0, 9]], [[9, 9], [0, 9]]], np.uint8)
    [ids] = arrays(crops(tmp_path / "small", sections(tmp_path / "small", (diagonal, diagonal)), size=(2, 2, 2)), "mask")
    assert ids.tolist() == [[[1, 0], [0, 2]], [[3, 3], [0, 3]]]


def test_sections_are_held_only_as_deep_as_a_crop(tmp_path, monkeypatch):
    alive = []

    class Watched(stage.deque):
        def append(self, section):
            super().append(section)
            alive.append(len(self))

    monkeypatch.setattr(stage, "deque", Watched)
    crops(tmp_path, sections(tmp_path), size=(3, 32, 32), overlap=(2, 0, 0))
    assert max(alive) == 3 and len(alive) == 8


def test_sections_without_labels_are_unlabelled_and_numbers_go_on(tmp_path):
    corpus = crops(tmp_path, sections(tmp_path), size=(8, 32, 32), labelled=[2, 6])
    [ids] = arrays(corpus, "mask")
    assert [section.min() for section in ids] == [-1, 0, -1, 0, -1, -1, -1, -1]
    assert all((ids[i] == -1).all() for i in (0, 2, 4, 5, 6, 7))
    assert ids[1].max() + 1 == ids[3][ids[3] > 0].min()


def test_without_cells_there_is_no_mask(tmp_path):
    corpus = crops(tmp_path, sections(tmp_path), size=(4, 16, 16), cells=None)
    assert corpus.columns == ["id", "number", "array"] and corpus.count() == 8


def test_what_cannot_be_is_told(tmp_path):
    rows = sections(tmp_path)
    for given, settings, message in (
        (rows.filter("slice > 100"), {}, "no sections"),
        (rows, {"size": (9, 8, 8)}, "8 sections are too few for crops of 9"),
        (rows, {"size": (2, 33, 8)}, "32x32 has no crop of 33x8"),
        (rows, {"size": (2, 8, 8), "labelled": [2, 3]}, "no section 3"),
        (rows, {"size": (2, 8, 8), "order": "place"}, "place"),
        (_numbered(tmp_path, rows), {"size": (2, 8, 8), "order": "number"}, "of its own"),
        (rows, {"size": (2, 8, 8), "image": "id"}, "cannot be read"),
    ):
        with pytest.raises(TilthError, match=message):
            crops(tmp_path / "made", given, **settings)
    larger = sections(tmp_path / "larger", drawn(side=40)).table()
    mixed = Corpus.write(tmp_path / "mixed.lance", [*rows.filter("slice < 4").scan(), *larger.slice(4).to_batches()], rows.schema)
    with pytest.raises(TilthError, match="a section of 40x40 among sections of 32x32"):
        crops(tmp_path / "made", mixed, size=(2, 8, 8))
    with pytest.raises(TilthError, match="cannot overlap by 2"):
        Sections(data="rows", size=(2, 8, 8), overlap=(2, 0, 0))
    with pytest.raises(TilthError, match="of sections with cells"):
        Sections(data="rows", labelled=[1])


def _numbered(folder, rows):
    table = rows.table()
    table = table.append_column("number", [[3] * len(table)])
    return Corpus.write(folder / "numbered.lance", table.to_batches(), table.schema)


@pytest.mark.skipif("TILTH_DATA" not in os.environ, reason="needs the shared data")
def test_membranes_of_the_real_stack_are_dark_and_a_fifth(tmp_path, data):
    rows = ingest(catalogue.resolve("em_membrane").path, tmp_path / "em.lance").corpus.filter("slice < 4")
    Sections(data="em", size=(4, 512, 512), cells="membrane").run(Context(tmp_path, corpora={"em": rows}))
    corpus = Corpus.open(tmp_path / "corpus.lance")
    [grey], [ids] = arrays(corpus, "array"), arrays(corpus, "mask")
    assert 0.15 < (ids == 0).mean() < 0.25 and grey[0][ids == 0].mean() < grey[0][ids > 0].mean() - 40
    assert 100 < len(np.unique(ids[0])) < 200


def test_membranes_are_a_class_of_their_own(tmp_path):
    [mask] = arrays(crops(tmp_path, sections(tmp_path), size=(8, 32, 32), mask="membranes", labelled=[2, 4]), "mask")
    _, cells = drawn()
    assert np.array_equal(mask[1:3], (cells == 0)[1:3]) and (np.delete(mask, [1, 2], 0) == -1).all()
