import pytest
import torch

from tilth.batches.patches.patchify import patchify
from tilth.batches.patches.regroup import block_numbers, block_order, regroup, ungroup


@pytest.mark.parametrize("grid", [(12, 12), (6, 4), (5, 7), (1, 9), (10,), (4, 6, 5)])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 6, 20])
def test_there_and_back_for_any_grid_and_block(grid, block):
    count = torch.tensor(grid).prod().item()
    tokens = torch.randn(2, count, 3)
    found = regroup(tokens, grid, block)
    assert torch.equal(ungroup(found, grid, block), tokens)
    assert torch.equal(block_order(grid, block).sort().values, torch.arange(count))
    numbers = block_numbers(grid, block)[block_order(grid, block)]
    assert (numbers.diff() >= 0).all()


def test_blocks_are_in_raster_order_and_tokens_in_raster_order_within():
    """As reshaping has it, where blocks divide the grid."""
    for (height, width), block in [((12, 12), 4), ((12, 12), 6), ((4, 8), 2)]:
        places = torch.arange(height * width).reshape(height // block, block, width // block, block)
        expected = places.transpose(1, 2).flatten()
        assert torch.equal(block_order((height, width), block), expected)
        if width > block:
            assert not torch.equal(expected, torch.arange(height * width))
    # By hand, with blocks that do not divide the grid.
    assert block_order((3, 3), 2).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert block_numbers((3, 3), 2).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3]


def test_blocks_of_a_ramp_are_slices_of_the_picture():
    ramp = torch.arange(48 * 48, dtype=torch.float32).reshape(1, 1, 48, 48)
    blocks = regroup(patchify(ramp, (4, 4)), (12, 12), 6).unflatten(1, (4, 36))
    for number in range(4):
        top, left = 24 * (number // 2), 24 * (number % 2)
        expected = patchify(ramp[:, :, top : top + 24, left : left + 24], (4, 4))
        assert torch.equal(blocks[:, number], expected)
