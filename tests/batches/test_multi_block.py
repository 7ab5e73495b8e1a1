"""Blocks of patches: their shapes and bounds, exact counts, and that an example's mask is its own."""

from math import exp, floor, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.batches import draws
from tilth.batches.patches.multi_block import block_wise, multi_block
from tilth.contracts import Noise
from tilth.errors import TilthError


def keys(count: int, start: int = 0) -> torch.Tensor:
    return torch.from_numpy(Noise(0, np.arange(start, start + count)).keys())


def members(blocks, example: int, target: int) -> set[int]:
    numbers = blocks.targets[example, target]
    return set(numbers.tolist() if blocks.valid is None else numbers[blocks.valid[example, target]].tolist())


def sides(numbers: set[int], width: int) -> tuple[int, int]:
    """Height and width of a block, which must be a full rectangle."""
    rows, columns = sorted({n // width for n in numbers}), sorted({n % width for n in numbers})
    assert rows == list(range(rows[0], rows[-1] + 1)) and columns == list(range(columns[0], columns[-1] + 1))
    assert len(numbers) == len(rows) * len(columns)
    return len(rows), len(columns)


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (8, 8), (10, 20)])
def test_targets_are_four_rectangles_within_the_bounds_and_no_context_has_a_patch_of_theirs(grid):
    tokens, count = grid[0] * grid[1], 200
    blocks = multi_block(keys(count), grid)
    assert blocks.targets.shape[:2] == (count, 4)
    shapes = set()
    for example in range(count):
        hidden = set()
        for target in range(4):
            numbers = members(blocks, example, target)
            height, width = sides(numbers, grid[1])
            assert 0.15 <= height * width / tokens <= 0.2 and 0.75 <= height / width <= 1.5
            shapes.add((height, width))
            hidden |= numbers
        context = blocks.context[example].tolist()
        assert context == sorted(set(context)) and not hidden & set(context) and context[0] >= 0 and context[-1] < tokens
    assert len(shapes) > 1  # every block has a shape of its own
    # The count is the grid's alone: 0.85 .. 1 of the patches, less four of the largest targets.
    largest = max(height * width for height, width in shapes)
    assert blocks.targets.shape[2] == largest
    squares = [side * side for side in range(1, min(grid) + 1) if 0.85 * tokens <= side * side <= tokens]
    if squares:
        assert blocks.context.shape[1] == floor(min(squares) * (1 - 4 * largest / tokens))


def test_a_context_is_drawn_within_its_square_block_or_is_all_of_it_and_more():
    grid, scale = (14, 14), (0.4, 1.0)
    blocks = multi_block(keys(300), grid, context_scale=scale)
    counted = {True: 0, False: 0}
    for example, (share, _, down, right) in enumerate(draws.uniform(keys(300), "blocks/context", 1, 4)[:, 0].tolist()):
        wanted = sqrt(196 * (scale[0] + (scale[1] - scale[0]) * share))
        side = min(range(9, 15), key=lambda side: abs(log(side / wanted)))
        assert 0.4 <= side * side / 196 <= 1
        top, left = floor(down * (15 - side)), floor(right * (15 - side))
        block = {row * 14 + column for row in range(top, top + side) for column in range(left, left + side)}
        left_over = block - set().union(*(members(blocks, example, target) for target in range(4)))
        context = set(blocks.context[example].tolist())
        enough = len(left_over) >= len(context)
        assert context <= left_over if enough else left_over < context
        counted[enough] += 1
    assert counted[True] > 4 * counted[False] > 0


def test_every_place_is_reached_by_targets_and_contexts():
    blocks = multi_block(keys(400), (14, 14))
    for numbers in (blocks.targets[blocks.valid], blocks.context):
        assert len(numbers.unique()) == 196


@pytest.mark.parametrize("grid", [(4, 4), (5, 5), (6, 6), (7, 7), (3, 9)])
def test_grids_without_a_shape_of_both_bounds_keep_to_the_share(grid):
    blocks = multi_block(keys(50), grid)
    tokens = grid[0] * grid[1]
    for example in range(50):
        for target in range(4):
            height, width = sides(members(blocks, example, target), grid[1])
            assert height * width <= 0.2 * tokens + 1e-6
    assert blocks.context.shape[1] >= 1


def test_a_mask_depends_on_the_example_alone():
    together = multi_block(keys(6), (14, 14))
    alone = multi_block(keys(1, 4), (14, 14))
    assert torch.equal(together.context[4:5], alone.context)
    assert torch.equal(together.targets[4:5], alone.targets) and torch.equal(together.valid[4:5], alone.valid)
    assert torch.equal(block_wise(keys(6), (14, 14), 118).hidden[4:5], block_wise(keys(1, 4), (14, 14), 118).hidden)
    assert not torch.equal(together.targets[0], together.targets[1])


def test_what_leaves_no_context_and_what_is_no_picture_is_refused():
    with pytest.raises(TilthError, match="leave nothing to predict them from"):
        multi_block(keys(1), (14, 14), targets=6)
    with pytest.raises(TilthError, match="leave nothing to predict them from"):
        multi_block(keys(1), (2, 2))
    with pytest.raises(TilthError, match=r"bounds from 0.2 to 0.15"):
        multi_block(keys(1), (14, 14), scale=(0.2, 0.15))
    with pytest.raises(TilthError, match="two axes, not 3"):
        multi_block(keys(1), (4, 4, 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.floats(0, 1), st.integers(1, 16))
def test_block_wise_masks_hide_exactly_as_many_as_asked(height, width, share, smallest):
    hidden = int(share * height * width)
    mask = block_wise(keys(5), (height, width), hidden, smallest=smallest)
    assert mask.hidden.shape == (5, hidden)
    whole = torch.cat([mask.kept, mask.hidden], 1).sort(1).values
    assert torch.equal(whole, torch.arange(height * width).expand(5, -1))


def test_block_wise_masks_are_those_of_a_loop_over_examples_and_blocks():
    grid, hidden, smallest = (14, 14), 118, 16
    mask = block_wise(keys(20), grid, hidden, smallest=smallest)
    drawn = draws.uniform(keys(20), "mask", 16, 4).tolist()
    for numbers, found in zip(drawn, mask.hidden.tolist(), strict=True):
        covered: set[int] = set()
        for share, shape, down, right in numbers:
            area = smallest + share * max(hidden - len(covered) - smallest, 0)
            ratio = exp((1 - 2 * shape) * log(0.3))
            tall, wide = (min(max(round(sqrt(a)), 1), 14) for a in (area * ratio, area / ratio))
            top, left = floor(down * (15 - tall)), floor(right * (15 - wide))
            block = {row * 14 + column for row in range(top, top + tall) for column in range(left, left + wide)}
            if len(covered | block) >= hidden:  # the last block, of which random patches fill what is missing
                assert covered <= set(found) <= covered | block
                break
            covered |= block
        else:
            raise AssertionError("sixteen blocks did not do")
