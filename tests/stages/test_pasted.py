import numpy as np
import pytest
import torch

from tests.images import digits
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.stages.pasted import Pasted, pasted


def made(folder, rows, **settings):
    folder.mkdir(parents=True)
    metrics = Pasted(**{"data": "digits", "count": 300, "size": 24, **settings}).run(Context(folder, corpora={"digits": rows}))
    corpus = Corpus.open(folder / "corpus.lance")
    assert metrics == {"rows": float(corpus.count())}
    return corpus


def pixels(corpus, folder):
    examples = use("batches", "pictures", channels=1).build().build(corpus, None, Context(folder))
    numbers = np.arange(len(examples))
    return examples.batch(numbers, Noise(0, numbers)).pixel_values


def test_angles_alone_differ_and_the_rest_is_the_same(tmp_path):
    rows = digits(tmp_path / "digits")
    upright, rotated = (made(tmp_path / str(degrees), rows, degrees=degrees) for degrees in (0, 45))
    first, second = (pixels(corpus, tmp_path / f"p{i}") for i, corpus in enumerate((upright, rotated)))
    assert first.shape == (300, 1, 24, 24) and first.dtype == torch.uint8
    assert upright.table(["label"]) == rotated.table(["label"])
    labels = upright.table(["label"])["label"].to_pylist()
    assert np.bincount(labels, minlength=10).min() > 10
    same = (first == second).float().mean((1, 2, 3))
    assert same.min() > 0.2 and same.median() < 0.9  # canvases and places
    assert len({picture.numpy().tobytes() for picture in first}) == 300
    again = made(tmp_path / "again", rows, degrees=45)
    assert torch.equal(pixels(again, tmp_path / "p2"), second)
    assert upright.table(["number"])["number"].to_pylist() == list(range(300))


def test_an_object_lies_whole_at_its_scale_and_turns_about_its_middle():
    cover = np.ones((8, 8))
    for number in range(20):
        draw = lambda degrees, scale, cover=cover, number=number: pasted(
            cover, 48, (scale, scale), degrees, np.random.default_rng([7, number])
        ).astype(float)
        bare, full = draw(0, 0.5, 0 * cover), draw(0, 0.5)
        covered = abs(full - bare) > 3
        rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
        # The object's 8 pixels and a ring of one on every side, in which it fades, are 24 wide.
        assert all(19 <= len(found) <= 24 and len(found) == np.ptp(found) + 1 for found in (rows, columns))
        turned = abs(draw(90, 0.5) - bare) > 3
        here, there = (np.argwhere(found).mean(0) for found in (covered, turned))
        if here.min() > 17 and here.max() < 30:  # whole after any turn
            assert np.abs(here - there).max() < 1


def test_nothing_to_paste_is_told(tmp_path):
    rows = digits(tmp_path / "digits")
    with pytest.raises(TilthError, match="nothing to paste"):
        made(tmp_path / "none", rows.filter("label = 11"))
    with pytest.raises(TilthError, match="are none"):
        Pasted(data="digits", scale=(0.8, 0.4))
