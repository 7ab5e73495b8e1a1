"""Patches and masks: round trips, exact counts, and numbers that depend on the example alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.batches.patches import masks
from tilth.batches.patches.patchify import grid_of, normalised, patchify, unpatchify
from tilth.contracts import Noise
from tilth.errors import TilthError


def keys(count: int, start: int = 0) -> torch.Tensor:
    return torch.from_numpy(Noise(0, np.arange(start, start + count)).keys())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3), st.integers(1, 3))
def test_patches_of_any_number_of_axes_go_there_and_back(axes, channels):
    patch = [edge for _, edge in axes]
    size = [count * edge for count, edge in axes]
    values = torch.arange(2 * channels * int(np.prod(size)), dtype=torch.float32).reshape(2, channels, *size)
    patches = patchify(values, patch)
    assert patches.shape == (2, int(np.prod([c for c, _ in axes])), channels * int(np.prod(patch)))
    assert torch.equal(unpatchify(patches, grid_of(size, patch), patch), values)


def test_a_patch_is_laid_out_like_a_convolution_kernel_and_patches_in_raster_order():
    values = torch.randn(2, 3, 8, 12)
    conv = torch.nn.Conv2d(3, 5, kernel_size=(4, 3), stride=(4, 3), bias=False)
    ours = patchify(values, (4, 3)) @ conv.weight.flatten(1).T
    assert torch.allclose(ours, conv(values).flatten(2).transpose(1, 2), atol=1e-5)


def test_a_patch_that_does_not_divide_names_those_that_do():
    with pytest.raises(TilthError, match="5x5 do not divide an input of 32x32") as raised:
        grid_of((32, 32), (5, 5))
    assert "1, 2, 4, 8, 16, 32" in raised.value.hint


def test_normalised_patches_have_mean_zero_and_a_constant_one_is_zero():
    patches = torch.cat([torch.randn(1, 3, 48) * 7 + 2, torch.full((1, 3, 48), 0.3)])
    made = normalised(patches)
    assert torch.allclose(made[0].mean(-1), torch.zeros(3), atol=1e-5) and torch.allclose(
        made[0].std(-1), torch.ones(3), atol=1e-3
    )
    assert torch.equal(made[1], torch.zeros(3, 48))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.floats(0, 1), st.integers(1, 5))
def test_random_masks_have_exact_counts_and_depend_on_the_example_alone(tokens, share, count):
    hidden = int(share * tokens)
    mask = masks.random(keys(count), tokens, hidden)
    assert mask.hidden.shape == (count, hidden) and mask.kept.shape == (count, tokens - hidden)
    assert torch.equal(torch.cat([mask.kept, mask.hidden], 1).sort(1).values, torch.arange(tokens).expand(count, -1))
    assert torch.equal(mask.where().sum(1), torch.full((count,), hidden))
    assert torch.equal(masks.random(keys(1, count - 1), tokens, hidden).hidden, mask.hidden[-1:])


def test_every_patch_is_hidden_equally_often():
    share = masks.random(keys(4000), 16, 12).where().float().mean(0)
    assert torch.allclose(share, torch.full((16,), 0.75), atol=0.03)


def test_blocks_hide_whole_cubes_and_the_count_of_simmim():
    mask = masks.blocks(keys(8), (48, 48), 8, 0.6)  # 192 pixels, patches of 4, blocks of 32 pixels: 36 blocks, 22 hidden
    where = mask.where().reshape(8, 6, 8, 6, 8)
    whole = where.float().mean((2, 4))
    assert ((whole == 0) | (whole == 1)).all() and torch.equal(whole.sum((1, 2)), torch.full((8,), 22.0))
    with pytest.raises(ValueError, match="do not divide"):
        masks.blocks(keys(1), (6, 6), 4, 0.5)


def test_tubes_hide_the_same_places_at_every_time():
    where = masks.tubes(keys(3), (4, 3, 3), 5).where().reshape(3, 4, 9)
    assert (where == where[:, :1]).all() and torch.equal(where[:, 0].sum(1), torch.full((3,), 5))


def test_pick_takes_rows_of_a_shared_table_too():
    table, numbers = torch.randn(1, 6, 2), torch.tensor([[0, 5], [3, 1]])
    assert torch.equal(masks.pick(table, numbers), table[0][numbers])
