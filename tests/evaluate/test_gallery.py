"""What a report shows of an encoder: the right neighbours, attention that adds up, and pictures a page can hold."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from tests.images import digits
from tilth.backbones.folder import save
from tilth.backbones.patches import Patches
from tilth.batches.images.sheet import sheet
from tilth.context import Context, exhibits
from tilth.contracts import Sample, use
from tilth.evaluate.gallery import Gallery, attention, neighbours


def test_neighbours_are_the_most_similar_and_never_the_row_itself():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0], [2, 0.01]], np.float32)
    assert neighbours(features, np.array([0, 2]), 2).tolist() == [[4, 1], [1, 4]]
    assert neighbours(features, np.array([0]), 10).shape == (1, 4)


def test_attention_is_the_last_blocks_own(monkeypatch):
    torch.manual_seed(0)
    model = Patches(width=24, depth=2, heads=2, patch=4, class_token=True).build(Sample(3, (8, 16))).eval()
    pixels = torch.randn(2, 3, 8, 16)
    maps = attention(model, pixels)
    assert len(maps) == 2 and len(maps[0]) == 2 and maps[0][0].shape == (1, 8, 16)
    mixer = model.blocks[-1].mixer
    seen = []
    hook = mixer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model(pixels)
        q, k, _ = mixer.qkv(seen[0]).reshape(2, 9, 3, 2, 12).permute(2, 0, 3, 1, 4)
    hook.remove()
    expected = torch.softmax(q[0, 1] @ k[0, 1].T / 12**0.5, -1)[0, 1:].reshape(2, 4)
    found = torch.from_numpy(maps[0][1][0, ::4, ::4])
    assert torch.allclose(found, expected / expected.max(), atol=1e-5)


def test_a_sheet_keeps_pixels_whole_and_shows_volumes_by_their_middle():
    volume = np.zeros((1, 3, 4, 4), np.float32)
    volume[0, 1] = 1
    picture = Image.open(
        io.BytesIO(base64.b64decode(sheet([[np.zeros((3, 8, 8)), volume[:, 1]], [volume, np.full((13, 8, 8), 2.0)]])))
    )
    assert picture.size == (132, 132)
    pixels = np.asarray(picture)
    assert pixels[0, 0].tolist() == [0, 0, 0, 255] and pixels[70, 10].tolist() == [255] * 4 and pixels[0, 65, 3] == 0


def test_the_gallery_leaves_three_pictures_and_two_signs_of_collapse(tmp_path):
    rows = digits(tmp_path)
    torch.manual_seed(0)
    save(Patches(width=32, depth=1, heads=2, patch=2).build(Sample(1, (8, 8))), None, tmp_path / "model", {})
    context = Context(tmp_path / "stage", corpora={"digits": rows})
    context.folder.mkdir()
    scores = Gallery(data="digits", examples=60, queries=3, batches=use("batches", "pictures", channels=1))(
        tmp_path / "model", context
    )
    assert set(scores.metrics) == {"effective_rank", "uniformity"}
    shown = exhibits(context.folder)
    assert [exhibit["title"] for exhibit in shown] == ["Nearest neighbours", "Map of the features", "Attention"]
    for exhibit in shown:
        assert Image.open(io.BytesIO(base64.b64decode(exhibit["png"]))).format == "PNG"
    assert "Coloured by label" in shown[1]["note"]


def test_a_single_picture_is_shown_and_tells_no_sign_of_collapse(tmp_path):
    corpus = digits(tmp_path).filter("id = 'digit-0000'")
    torch.manual_seed(0)
    save(Patches(width=32, depth=1, heads=2, patch=2).build(Sample(1, (8, 8))), None, tmp_path / "model", {})
    context = Context(tmp_path / "stage", corpora={"digits": corpus})
    context.folder.mkdir()
    scores = Gallery(data="digits", batches=use("batches", "pictures", channels=1))(tmp_path / "model", context)
    assert scores.metrics == {} and len(exhibits(context.folder)) == 3
