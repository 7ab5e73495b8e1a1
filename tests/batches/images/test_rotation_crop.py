"""Adaptive rotation encoding, against loops over patches, windows and examples."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from tilth.batches.draws import uniform
from tilth.batches.images import augment
from tilth.batches.images.rotation_crop import SIZES, Square, salient, texture, turn, turned
from tilth.batches.patches.patchify import patchify


def pictures(count=5, channels=3, size=(48, 48)):
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(count))


def keys(count):
    return torch.arange(count) * 11 + 3


def test_texture_is_the_norm_of_a_histogram_of_local_binary_patterns():
    pixels = (pictures(2, size=(12, 8)) * 3).round() / 3  # ties between neighbours
    found = texture(pixels, (4, 4))
    for number, picture in enumerate(pixels):
        grey = np.pad(picture.mean(0).numpy(), 1, mode="edge")
        codes = np.zeros((12, 8), int)
        for row in range(12):
            for column in range(8):
                around = np.delete(grey[row : row + 3, column : column + 3].flatten(), 4)
                codes[row, column] = ((around >= grey[row + 1, column + 1]) << np.arange(8)).sum()
        for patch, values in enumerate(patchify(torch.from_numpy(codes)[None, None], (4, 4))[0].tolist()):
            expected = np.linalg.norm(list(Counter(values).values())) / 16
            assert found[number, patch].item() == pytest.approx(expected, rel=1e-6)


def test_one_pattern_scores_1_and_noise_little():
    pixels = pictures(1, 1, (32, 32))
    pixels[:, :, :16, :16] = 0.5
    pixels[:, :, 16:, 16:] = torch.arange(16.0)
    scores = texture(pixels, (8, 8)).reshape(4, 4)
    assert scores[0, 0] == 1 and scores[3, 3] == 1
    assert scores[:2, 2:].max() < 0.5


def expected_square(scores, grid, sizes):
    """Every window by itself."""
    score = scores.reshape(grid).double()
    top_row, top_column = divmod(int(scores.argmax()), grid[1])
    for size in sizes:
        side = max(1, round(size * min(grid)))
        windows = {
            (row, column): score[row : row + side, column : column + side].sum().item()
            for row in range(grid[0] - side + 1)
            for column in range(grid[1] - side + 1)
            if row <= top_row < row + side and column <= top_column < column + side
        }
        best = max(windows, key=windows.get)
        if windows[best] / side**2 >= score.mean():
            break
    return *best, side


@pytest.mark.parametrize("grid", [(12, 12), (9, 14), (7, 7), (2, 3)])
def test_the_square_of_greatest_total_that_holds_the_best_patch(grid):
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(64, grid[0] * grid[1], generator=generator)
    scores[:32] += 3 * (torch.rand(32, scores.shape[1], generator=generator) > 0.9)  # lone peaks
    scores[::3] = torch.where(scores[::3] == scores[::3].amax(1, keepdim=True), scores[::3], scores[::3] * 0.2)
    scores[1::3, : scores.shape[1] // 2] *= 0.1
    scores[1::3, 0] = 9  # the best patch lies where the rest is low, so large squares are refused
    found = salient(scores, grid)
    expected = [expected_square(one, grid, SIZES) for one in scores]
    assert list(zip(found.top.tolist(), found.left.tolist(), found.side.tolist(), strict=True)) == expected
    if grid == (12, 12):
        assert {side for *_, side in expected} >= {6, 2}


def test_large_squares_are_tried_before_small_ones():
    scores = torch.zeros(3, 144)
    scores[0] = 1.0
    scores[1:, 80:] = 1.0
    scores[1:, 0] = 7.0
    scores[2, 0] = 1.5
    assert salient(scores, (12, 12)).side.tolist() == [6, 2, 2]
    scores[1, 0] = 10.0  # mean of 16 patches 0.625 against 0.51, of 36 0.28
    assert salient(scores, (12, 12)).side.tolist() == [6, 4, 2]


@pytest.mark.parametrize("grid", [(12, 12), (24, 24)])
def test_only_tokens_within_the_square_are_marked(grid):
    square = Square(torch.tensor([2, 0, 7]), torch.tensor([6, 0, 10]), torch.tensor([6, 4, 2]))
    marked = square.where(grid)
    assert marked.sum(1).tolist() == [36, 16, 4]
    for number, (top, left, side) in enumerate([(2, 6, 6), (0, 0, 4), (7, 10, 2)]):
        expected = torch.zeros(grid, dtype=torch.bool)
        expected[top : top + side, left : left + side] = True
        assert torch.equal(marked[number].reshape(grid), expected)


def test_at_angle_0_nothing_changes_and_the_result_is_new():
    pixels = pictures()
    before = pixels.clone()
    found, marked = turned(pixels, keys(5), (4, 4), degrees=0)
    torch.testing.assert_close(found, pixels, rtol=0, atol=1e-6)
    assert marked.sum(1).tolist() and set(marked.sum(1).tolist()) <= {36, 16, 4}
    found, _ = turned(pixels, keys(5), (4, 4))
    assert torch.equal(pixels, before) and found.data_ptr() != pixels.data_ptr()
    assert not torch.allclose(found, pixels, atol=1e-2)


@pytest.mark.parametrize("patch", [(4, 4), (3, 4)])
def test_the_square_turns_about_its_centre_and_the_rest_stays(patch):
    pixels = pictures(4)
    square = Square(torch.tensor([0, 3, 5, 1]), torch.tensor([0, 4, 2, 5]), torch.tensor([6, 4, 2, 6]))
    degrees = torch.tensor([30.0, -45.0, 10.0, 90.0])
    found = turn(pixels, square, patch, degrees)
    for number in range(4):
        top, left, height, width = (
            int(n) for n in (square.top[number] * patch[0], square.left[number] * patch[1], *(square.side[number] * side for side in patch))
        )  # fmt: skip
        crop = pixels[number, :, top : top + height, left : left + width].numpy()
        y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
        sin, cos = np.sin(np.deg2rad(degrees[number].item())), np.cos(np.deg2rad(degrees[number].item()))
        down, across = sin * x + cos * y, cos * x - sin * y
        covered = (abs(down) < height / 2 - 1e-4) & (abs(across) < width / 2 - 1e-4)
        places = [down + (height - 1) / 2, across + (width - 1) / 2]
        rotated = np.stack([map_coordinates(channel, places, order=1, mode="nearest") for channel in crop])
        expected = pixels[number].clone()
        expected[:, top : top + height, left : left + width] = torch.from_numpy(np.where(covered, rotated, crop))
        assert (found[number] - expected).abs().max() < 1e-4
        outside = torch.ones(48, 48, dtype=torch.bool)
        outside[top : top + height, left : left + width] = False
        assert torch.equal(found[number, :, outside], pixels[number, :, outside])


def test_turns_as_whole_pictures_are_turned():
    pixels, degrees = pictures(3, 1, (24, 24)), torch.tensor([20.0, -33.0, 90.0])
    whole = Square(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.full((3,), 6))
    inner = slice(6, 18)
    found, expected = turn(pixels, whole, (4, 4), degrees), augment.rotate(pixels, degrees)
    torch.testing.assert_close(found[:, :, inner, inner], expected[:, :, inner, inner], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], pixels[2].rot90(1, (1, 2)), rtol=0, atol=1e-5)


def test_angles_are_uniform_and_examples_do_not_depend_on_their_company():
    angles = 45 * (2 * uniform(keys(4000), "rotation") - 1)
    assert angles.abs().max() < 45 and abs(angles.mean()) < 1.5 and angles.std().item() == pytest.approx(90 / 12**0.5, rel=0.03)
    pixels = pictures(6)
    pixels[::2] = torch.linspace(0, 1, 48)  # other squares than noise has
    found, marked = turned(pixels, keys(6), (4, 4))
    square, scores = salient(texture(pixels, (4, 4)), (12, 12)), angles[:6]
    assert torch.equal(found, turn(pixels, square, (4, 4), scores)) and torch.equal(marked, square.where((12, 12)))
    for number in range(6):
        alone, mark = turned(pixels[number : number + 1], keys(6)[number : number + 1], (4, 4))
        torch.testing.assert_close(alone[0], found[number], rtol=0, atol=1e-6)
        assert torch.equal(mark[0], marked[number])


def test_any_channels_size_and_patch():
    for channels, size, patch in [(1, (8, 20), (2, 5)), (13, (30, 18), (6, 6)), (3, (64, 64), (16, 16))]:
        found, marked = turned(pictures(2, channels, size), keys(2), patch)
        assert found.shape == (2, channels, *size) and marked.shape[1] == size[0] // patch[0] * (size[1] // patch[1])
        assert marked.any(1).all()
