import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.images import BATCHES, digits
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.errors import TilthError


def corpus(folder, images, labels):
    encoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        encoded.append(file.getvalue())
    table = pa.table({"id": [str(i) for i in range(len(labels))], "image": pa.array(encoded, pa.large_binary()), "label": labels})
    return Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)


def test_pixels_are_the_images_normalised(tmp_path):
    rows = BATCHES.build().build(digits(tmp_path), None, Context(tmp_path))
    batch = rows.batch(np.array([5, 0]))
    expected = torch.from_numpy((load_digits().images[[5, 0]] * 255 / 16).round() / 255 - 0.5).float() / 0.5
    torch.testing.assert_close(batch.pixel_values[:, 0], expected)
    assert batch.labels.tolist() == load_digits().target[[5, 0]].tolist() and batch.samples == 2


def test_images_are_decoded_once(tmp_path, monkeypatch):
    context, data = Context(tmp_path), digits(tmp_path)
    first = BATCHES.build().build(data, None, context)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    again = use("batches", "images", channels=1, mean=0.0, label=None).build().build(data, None, context)
    assert isinstance(first.pixels, np.memmap) and np.array_equal(first.pixels, again.pixels)


def test_colours_keep_their_place_and_sizes_are_made_one(tmp_path):
    images = [np.zeros((6, 4, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
    images[0][..., 1] = 255
    images[0][:3] = 0
    rows = use("batches", "images", size=None).build().build(corpus(tmp_path, images, [3, 1]), None, Context(tmp_path))
    assert rows.pixels.shape == (2, 3, 6, 4)
    assert rows.pixels[0].max((1, 2)).tolist() == [0, 255, 0] and rows.pixels[0, 1, :3].max() == 0
    square = use("batches", "images", size=5).build().build(corpus(tmp_path / "again", images, [3, 1]), None, Context(tmp_path))
    assert square.pixels.shape == (2, 3, 5, 5)


def test_whole_numbers_are_class_indices_even_where_a_class_is_absent(tmp_path):
    rows = BATCHES.build().build(digits(tmp_path).filter("label > 7"), None, Context(tmp_path))
    assert set(rows.labels.tolist()) == {8, 9}


def test_without_a_label_column_labels_are_not_read(tmp_path):
    rows = use("batches", "images", channels=1, label=None).build().build(digits(tmp_path), None, Context(tmp_path))
    assert set(rows.labels.tolist()) == {-100}


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    table = pa.table({"id": ["good", "bad"], "image": pa.array([b"", b"GIF89"], pa.large_binary()), "label": [0, 1]})
    broken = Corpus.write(tmp_path / "corpus.lance", table.to_batches(), table.schema).filter("id = 'bad'")
    with pytest.raises(TilthError, match="row 'bad'"):
        BATCHES.build().build(broken, None, Context(tmp_path))
