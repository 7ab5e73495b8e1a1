"""Arrays with ids of objects: numbers as they are, what is unlabelled, and masks that do not fit."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tilth.batches.images.instances import Instances
from tilth.context import Context
from tilth.contracts import Noise
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.errors import TilthError


def built(folder, arrays, masks, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "id": [str(i) for i in range(len(arrays))],
            "array": pa.array([packed(array) for array in arrays], pa.large_binary()),
            "mask": pa.array(
                [mask if mask is None or isinstance(mask, bytes) else packed(mask) for mask in masks], pa.large_binary()
            ),
        }
    )
    corpus = Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)
    return Instances(**settings).build(corpus, None, Context(folder))


def test_ids_go_with_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (3, 1, 2, 4, 5)).astype(np.uint8)
    masks = [rng.integers(-1, 300_000, (2, 4, 5)).astype(np.int64), None, np.zeros((2, 4, 5), np.uint8)]
    rows = built(tmp_path, arrays, masks)
    batch = rows.batch(np.array([2, 0, 1]), Noise(0, np.array([5, 6, 7])))
    assert batch.samples == 3 and batch.ids.dtype == torch.int64 and batch["keys"].shape == (3,)
    assert torch.equal(batch.pixel_values, torch.from_numpy(arrays[[2, 0, 1]]))
    assert torch.equal(batch.ids[1], torch.from_numpy(masks[0])) and not batch.ids[0].any() and (batch.ids[2] == -1).all()
    assert isinstance(rows.ids, np.memmap) and rows.ids.dtype == np.int32
    assert [row.tolist() for row in rows.rows(np.array([1, 0]))] == [[1], [0]]


def test_a_network_standardises_by_what_is_measured_or_given(tmp_path):
    array = np.full((1, 2, 2), 51, np.uint8)
    array[0, 0] = 255
    mask = np.zeros((2, 2), np.int32)
    assert built(tmp_path / "a", [array], [mask]).sample.mean == pytest.approx((0.6,))
    given = built(tmp_path / "b", [array], [mask], mean=[0.5], std=[0.1]).sample
    assert given.mean == (0.5,) and given.std == (0.1,) and given.size == (2, 2)


def test_what_cannot_be_is_told(tmp_path):
    array, mask = np.zeros((1, 4, 4), np.uint8), np.zeros((4, 4), np.int32)
    for masks, settings, message in (
        ([mask[:2]], {}, r"a mask of int32 \(2, 4\)"),
        ([mask.astype(np.float32)], {}, "a mask of float32"),
        ([mask - 2], {}, "ids from -2"),
        ([np.full((4, 4), 2**31)], {}, "to 2147483648"),
        ([b"no array"], {}, "cannot be read"),
        ([mask], {"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "each of 1 channels"),
    ):
        with pytest.raises(TilthError, match=message):
            built(tmp_path / str(abs(hash(message))), [array], masks, **settings)
    with pytest.raises(TilthError, match="go together"):
        Instances(mean=[0.5])
    table = pa.table({"id": ["0"], "array": [packed(array)]})
    with pytest.raises(TilthError, match="no column 'mask'"):
        Instances().build(Corpus.write(tmp_path / "plain.lance", table.to_batches(), table.schema), None, Context(tmp_path))
