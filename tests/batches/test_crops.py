"""VoCo's crops: the card's labels, the geometry behind them, and that every crop is where it says."""

import pytest
import torch
from torch.nn import functional as F

from tilth.batches.patches.crops import CropGrid, CropPairs, crop_keys, cut, padded
from tilth.contracts import use
from tilth.errors import TilthError

PAPER = CropGrid.of(64, 3, 3)
KEYS = torch.arange(200) * 7 + 3


def coordinates(batch, *size):
    """(batch, axes + 1, *size): every voxel holds the number of its example and its place."""
    planes = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
    return torch.cat(
        [torch.arange(float(batch)).reshape(-1, 1, *[1] * len(size)).expand(-1, 1, *size), planes.expand(batch, *planes.shape)], 1
    )


def test_labels_of_the_card():
    assert PAPER.region == (192, 192, 64) and PAPER.bases().shape == (9, 3)
    centred, corner = PAPER.labels(torch.tensor([[96 - 32, 96 - 32, 0], [64 - 32, 64 - 32, 0]]))
    assert centred.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert corner.tolist() == [0.25, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("grid", "axes"), [(PAPER, 3), (CropGrid.of(5, [3, 4, 2], 3), 3), (CropGrid.of(7, 4, 2), 2), (CropGrid.of(4, 5, 1), 1)]
)
def test_labels_are_shares_that_sum_to_one(grid, axes):
    begins = grid.random(KEYS, 4)
    labels = grid.labels(begins)
    assert torch.allclose(labels.sum(-1), torch.ones(200, 4), atol=1e-6)
    assert (labels > 0).sum(-1).max() <= 2 ** sum(n > 1 for n in grid.counts) and labels.min() >= 0
    # Counted voxel by voxel, in a region whose voxels hold the number of their base crop.
    numbers = torch.arange(float(len(grid.bases()))).reshape(1, 1, *grid.counts)
    region = numbers
    for axis, side in enumerate(grid.sides):
        region = region.repeat_interleave(side, axis + 2)
    seen = cut(region.expand(3, *region.shape[1:]), begins[:3], grid.sides).flatten(2).long()
    counted = F.one_hot(seen, labels.shape[-1]).float().mean(2)
    assert torch.allclose(counted, labels[:3], atol=1e-6)


def test_exchanged_axes_transpose_the_labels():
    begins = PAPER.random(KEYS, 2)
    swapped = begins[..., [1, 0, 2]]
    assert torch.equal(PAPER.labels(swapped).unflatten(-1, (3, 3)), PAPER.labels(begins).unflatten(-1, (3, 3)).mT)


def test_random_crops_fill_the_region_and_never_leave_it():
    centres = PAPER.random(torch.arange(5000), 2) + 32
    assert centres[..., :2].min() == 32 and centres[..., :2].max() == 159 and (centres[..., 2] == 32).all()
    assert abs(centres[..., :2].float().mean() - 95.5) < 1 and centres[:, 0].ne(centres[:, 1]).any()


@pytest.mark.parametrize("size", [(12, 15, 4), (9, 9, 3)])
def test_every_crop_is_cut_where_its_label_says_out_of_its_own_volume(size):
    grid = CropGrid.of(3, 3, 3)
    pixels = coordinates(6, *size)
    crops, labels = grid(pixels, KEYS[:6], 2)
    assert crops.shape == (6, 11, 4, 3, 3, 3) and labels.shape == (6, 2, 9)
    assert torch.equal(crops[:, :, 0], torch.arange(6.0).reshape(6, 1, 1, 1, 1).expand(6, 11, 3, 3, 3))
    begins = crops[:, :, 1:, 0, 0, 0]
    assert torch.equal(crops[:, :, 1:], begins[..., None, None, None] + coordinates(1, 3, 3, 3)[0, 1:])
    origin = begins[:, :1]
    assert torch.equal(begins[:, :9] - origin, grid.bases().float().expand(6, 9, 3))
    assert torch.equal(grid.labels((begins[:, 9:] - origin).long()), labels)
    assert (origin >= 0).all() and (origin[:, 0] + 9 <= torch.tensor(size) + torch.tensor([0, 0, 6])).all()


def test_a_larger_volume_lends_a_random_region_and_a_smaller_one_is_padded_with_its_air():
    grid = CropGrid.of(3, 3, 3)
    origins = grid(coordinates(200, 11, 9, 3), KEYS, 1)[0][:, 0, 1:, 0, 0, 0]
    assert [set(origins[:, axis].tolist()) for axis in range(3)] == [{0.0, 1.0, 2.0}, {0.0}, {0.0}]
    small = torch.rand(2, 2, 7, 9, 2) - 3
    whole = padded(small, grid.region)
    assert whole.shape == (2, 2, 9, 9, 3) and torch.allclose(whole[:, :, :7, :, :2], small)
    low = small.flatten(2).amin(2)
    assert torch.allclose(whole[:, :, 7:], low[..., None, None, None].expand(2, 2, 2, 9, 3))
    assert torch.allclose(whole[:, :, :, :, 2:], low[..., None, None, None].expand(2, 2, 9, 9, 1))


def test_crops_do_not_depend_on_their_company():
    grid, pixels = CropGrid.of(4, 3, 2), torch.rand(5, 1, 14, 12)
    crops, labels = grid(pixels, KEYS[:5], 2)
    alone, label = grid(pixels[3:4], KEYS[3:4], 2)
    assert torch.equal(alone[0], crops[3]) and torch.equal(label[0], labels[3])
    keys = crop_keys(KEYS[:5], 11)
    assert keys.unique().numel() == 55


def test_pairs_are_two_views_of_each_of_the_same_crops():
    pixels = torch.rand(3, 1, 12, 12, 4)
    still = CropPairs(crop=4, views=use("views", "none"))
    first, second = still(pixels, KEYS[:3])
    expected = CropGrid.of(4, 3, 3)(pixels, KEYS[:3], 2)[0].flatten(0, 1)
    assert torch.equal(first, expected) and torch.equal(second, expected)
    one, other = CropPairs(crop=4)(pixels, KEYS[:3])
    assert one.shape == expected.shape and not torch.equal(one, other)


def test_grids_that_cannot_be_are_told():
    with pytest.raises(TilthError, match="single base crop"):
        CropGrid.of(4, 1, 2)
    with pytest.raises(TilthError, match="3 axes"):
        CropGrid.of([4, 4], 3, 3)
