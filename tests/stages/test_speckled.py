"""Speckle has the gamma distribution of its looks, and every generated picture its own."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.images import digits
from tilth.batches.images.speckle import speckled
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.stages.speckled import Speckled


@pytest.mark.parametrize("looks", [1, 4])
def test_speckle_is_gamma_noise_that_hangs_on_the_key_alone(looks):
    mean = torch.full((8, 1, 64, 64), 0.3)
    found = speckled(mean, torch.arange(8), looks)
    assert stats.kstest(found.flatten().numpy(), stats.gamma(looks, scale=0.3 / looks).cdf).pvalue > 0.01
    assert torch.equal(speckled(mean[2:3], torch.tensor([2]), looks), found[2:3])
    torch.testing.assert_close(speckled(2 * mean, torch.arange(8), looks), 2 * found)
    assert np.corrcoef(found[0].flatten(), found[1].flatten())[0, 1] < 0.05


def made(folder, rows, **settings):
    folder.mkdir()
    metrics = Speckled(**{"data": "digits", "size": 16, **settings}).run(Context(folder, corpora={"digits": rows}))
    corpus = Corpus.open(folder / "corpus.lance")
    assert metrics == {"rows": float(corpus.count())}
    return corpus, use("batches", "pictures", channels=1).build().build(corpus, None, Context(folder)).pixels / 255


def test_every_row_is_seen_several_times_in_other_speckle(tmp_path):
    rows = digits(tmp_path / "digits").filter("draw < 0.02")
    corpus, pixels = made(tmp_path / "looks", rows, copies=3)
    assert corpus.table(["label"])["label"].to_pylist() == np.repeat(rows.table(["label"])["label"].to_pylist(), 3).tolist()
    assert pixels.shape == (3 * rows.count(), 1, 16, 16) and len(np.unique(pixels, axis=0)) == len(pixels)
    _, again = made(tmp_path / "again", rows, copies=3)
    _, others = made(tmp_path / "others", rows, copies=3, first=1)
    assert np.array_equal(pixels, again) and not (pixels == others).all((1, 2, 3)).any()


def test_objects_are_as_bright_as_said(tmp_path):
    rows = digits(tmp_path / "digits").filter("draw < 0.02")
    _, pixels = made(tmp_path / "calm", rows, looks=400, background=0.2, object=0.6)
    assert np.quantile(pixels, [0.05, 0.995]) == pytest.approx([0.2, 0.6], abs=0.05)
    with pytest.raises(TilthError, match="nothing to look at"):
        made(tmp_path / "none", rows.filter("label = 11"))
