"""Generated bodies: what is where, which organ is called the dominating one, and that bodies differ as they should."""

import numpy as np

from tilth.context import Context
from tilth.corpus import Corpus
from tilth.corpus.arrays import unpacked
from tilth.stages.bodies import ORGANS, Bodies, body


def rows(folder, **settings):
    folder.mkdir(exist_ok=True)
    assert Bodies(**settings).run(Context(folder))["rows"] == settings["count"]
    corpus = Corpus.open(folder / "corpus.lance")
    assert corpus.kind == "volume"
    return corpus.table().to_pylist()


def test_whole_bodies_hold_all_organs_at_their_places(tmp_path):
    made = rows(tmp_path / "a", count=12, size=36)
    masks = np.stack([unpacked(row["mask"]) for row in made])
    assert (
        masks.shape == (12, 36, 36, 12)
        and unpacked(made[0]["array"]).shape == (1, 36, 36, 12)
        and made[0]["spacing"] == [1.0] * 3
    )
    centres = np.array([[np.argwhere(mask == organ).mean(0) for organ in range(1, ORGANS + 1)] for mask in masks])
    assert centres.std(0).max() < 3  # voxels, of which an organ's place has a third of 36
    apart = np.linalg.norm(centres.mean(0)[:, None] - centres.mean(0), axis=-1)[~np.eye(ORGANS, dtype=bool)]
    assert apart.min() > 6  # and their radii about 4


def test_organs_are_brighter_than_the_trunk_and_alike_over_bodies():
    values, masks = (np.stack(parts) for parts in zip(*[body(n, 36, 0.1) for n in range(60)], strict=True))
    means = np.array([[v[m == organ].mean() for organ in range(ORGANS + 1)] for v, m in zip(values, masks, strict=True)])
    assert (means[:, 1:] > 1.5 * means[:, :1]).all()
    assert np.ptp(means[:, 1:].mean(0)) < 15 and means[:, 1:].std(0).min() > 10  # of 255: none has a brightness of its own


def test_crops_are_named_by_the_organ_with_most_voxels_and_organs_take_turns(tmp_path):
    made = rows(tmp_path / "b", count=50, size=36, crop=12, start=100)
    assert [row["number"] for row in made] == list(range(100, 150))
    for row in made:
        values, mask = unpacked(row["array"]), unpacked(row["mask"])
        counts = [(mask == organ).sum() for organ in range(1, ORGANS + 1)]
        assert values.shape == (1, 12, 12, 12) and row["organ"] == 1 + int(np.argmax(counts)) and max(counts) > 0
    assert np.bincount([row["organ"] for row in made], minlength=6)[1:].min() >= 9


def test_a_body_is_a_function_of_its_number(tmp_path):
    first, again = rows(tmp_path / "c", count=3, start=5), rows(tmp_path / "d", count=2, start=6)
    assert first[1:] == again and first[0]["array"] != again[0]["array"]
