"""Each operation against hand-computed values, and Pillow, SciPy and NumPy as independent implementations, example by example."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage

from tilth.batches.images import augment
from tilth.errors import TilthError


def pictures(count=3, channels=3, height=12, width=9, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((count, channels, height, width), dtype=np.float32))


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def pillow(picture):
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def near(found, expected, tolerance=1e-6):
    expected = torch.from_numpy(np.array(np.asarray(expected), dtype=np.float32))
    return found.shape == expected.shape and torch.allclose(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("size", [(12, 9), (5, 4), (20, 17)])
def test_crops_are_pillows_reduced_or_enlarged(size, bicubic):
    images, boxes = pictures(), tensor([2, 1, 7, 6], [0, 0, 12, 9], [11, 3, 1, 5])
    found = augment.crop(images, boxes, size, torch.tensor([False, False, True]), bicubic)
    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    for image, box, result, flipped in zip(images, boxes.int().tolist(), found, (False, False, True)):
        top, left, height, width = box
        for plane, of_result in zip(image, result):
            cut = Image.fromarray(plane[top : top + height, left : left + width].numpy())
            expected = np.asarray(cut.resize(size[::-1], method))
            assert near(of_result, expected[:, ::-1] if flipped else expected)


def test_autocast_leaves_pictures_in_single_precision():
    images, boxes = pictures(), tensor([2, 1, 7, 6], [0, 0, 12, 9], [11, 3, 1, 5])
    expected = augment.crop(images, boxes, (6, 6), torch.tensor([False, False, True]))
    with torch.autocast("cpu", torch.bfloat16):
        found = augment.crop(images, boxes, (6, 6), torch.tensor([False, False, True]))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_a_reduced_axis_is_averaged_and_an_enlarged_one_interpolated():
    row = tensor(0, 4, 8, 12).reshape(1, 1, 1, 4)
    whole = tensor([0, 0, 1, 4])
    # The triangle of half-width 2 around 1 and 3: weights 3, 3, 1 over 7 and 1, 3, 3 over 7 (quarter pixels in halves).
    assert near(augment.crop(row, whole, (1, 2))[0, 0, 0], [(3 * 0 + 3 * 4 + 8) / 7, (4 + 3 * 8 + 3 * 12) / 7], 1e-5)
    assert near(augment.crop(row, tensor([0, 0, 1, 2]), (1, 4))[0, 0, 0], [0, 1, 3, 4], 1e-5)


def test_flips_and_quarter_turns_are_numpys():
    volumes = torch.rand(4, 2, 5, 5, 3)
    flipped = torch.tensor([[False, False, False], [True, False, False], [False, True, True], [True, True, True]])
    for found, volume, axes in zip(augment.flip(volumes, flipped), volumes, flipped):
        assert near(found, np.flip(volume.numpy(), [i + 1 for i in range(3) if axes[i]]), 0)
    turns = torch.tensor([0, 1, 2, 3])
    for plane in ((2, 3), (3, 2)):
        for found, volume, k in zip(augment.rot90(volumes, turns, plane), volumes, turns.tolist()):
            assert near(found, np.rot90(volume.numpy(), k, [axis - 1 for axis in plane]), 0)
    assert near(augment.rot90(volumes, turns - 4, (2, 3)), augment.rot90(volumes, turns, (2, 3)), 0)
    with pytest.raises(TilthError, match="5 x 3"):
        augment.rot90(volumes, turns)


def test_any_angle_is_scipys_rotation():
    images, degrees = pictures(5, 2, 11, 16), tensor(0, 30, -75, 90, 200)
    found = augment.rotate(images, degrees)
    assert near(found[0], images[0])
    for result, image, angle in zip(found, images, degrees.tolist()):
        assert near(result, ndimage.rotate(image.numpy(), angle, axes=(2, 1), reshape=False, order=1, mode="grid-constant"), 1e-4)
    square = pictures(1, 1, 6, 6)
    assert near(augment.rotate(square, tensor(90)), np.rot90(square.numpy(), 1, (2, 3)), 1e-5)
    volume = torch.rand(1, 1, 3, 6, 6)
    assert near(augment.rotate(volume, tensor(90)), np.rot90(volume.numpy(), 1, (3, 4)), 1e-5)


@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        (augment.brightness, ImageEnhance.Brightness),
        (augment.contrast, ImageEnhance.Contrast),
        (augment.saturation, ImageEnhance.Color),
    ],
)
def test_brightness_contrast_and_saturation_are_pillows(operation, enhancer):
    images, factors = pictures(4), tensor(0.3, 1.0, 1.7, 0.0)
    images = (images * 255).round() / 255
    found = operation(images, factors)
    assert near(found[1], images[1])
    for result, image, factor in zip(found, images, factors.tolist()):
        expected = np.asarray(enhancer(pillow(image)).enhance(factor)).transpose(2, 0, 1) / 255
        assert near(result, expected, 2.1 / 255)
        assert abs(result.numpy() - expected).mean() < 0.7 / 255


def test_the_hue_is_turned_as_colorsys_turns_it():
    corners = list(itertools.product((0.0, 0.5, 1.0), repeat=3))
    images = torch.cat([tensor(*corners).T.reshape(1, 3, 3, 9), pictures(1, 3, 3, 9)]).repeat(3, 1, 1, 1)
    turns = tensor(0, 0.1, -0.35, 0.5, -0.5, 0.02)
    found = augment.hue(images, turns)
    for result, image, turn in zip(found, images, turns.tolist()):
        pixels = image.flatten(1).T.tolist()
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
        expected = [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv]
        assert near(result.flatten(1).T, expected, 2e-6)


def test_each_step_of_jitter_is_clipped_and_stands_in_its_own_order():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    factors = tensor([1.6, 1.7, 0.4, 0.2]).repeat(24, 1)
    images = pictures(1, 3, 4, 4).repeat(24, 1, 1, 1)
    operations = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    expected = []
    for order, factor, image in zip(orders.tolist(), factors, images):
        for step in order:
            image = operations[step](image[None], factor[step : step + 1])[0]
        expected.append(image)
    found = augment.jitter(images, factors, orders)
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-6, rtol=0)
    assert len(torch.unique((found * 1e4).round(), dim=0)) == 24
    assert near(augment.jitter(images, tensor([1, 1, 1, 0]).repeat(24, 1), orders), images)


def test_without_three_channels_jitter_is_brightness_and_contrast_and_colour_operations_are_refused():
    images = pictures(2, 5)
    found = augment.jitter(images, tensor([1.2, 0.5, 0.1, 0.3], [1.2, 0.5, 0.1, 0.3]), torch.tensor([[0, 1, 2, 3], [3, 1, 2, 0]]))
    first = (images[:1] * 1.2).clamp(0, 1)
    assert near(found[:1], 0.5 * first + 0.5 * first.mean())
    assert near(found[1:], ((0.5 * images[1:] + 0.5 * images[1:].mean()) * 1.2).clamp(0, 1))
    for operation in (augment.saturation, augment.hue, lambda x, _: augment.greyscale(x, torch.ones(2, dtype=torch.bool))):
        with pytest.raises(TilthError, match="three channels, not 5"):
            operation(images, tensor(1, 1))


def test_grey_is_the_luma_in_all_channels_of_the_chosen():
    images = pictures(2)
    found = augment.greyscale(images, torch.tensor([True, False]))
    luma = 0.299 * images[0, 0] + 0.587 * images[0, 1] + 0.114 * images[0, 2]
    assert near(found[0], luma.expand(3, -1, -1))
    assert near(found[1], images[1], 0)


def test_blurs_are_scipys_gaussians_of_each_examples_own_width():
    for images in (pictures(4), torch.rand(4, 1, 6, 7, 8)):
        sigmas = tensor(0, 0.1, 0.8, 2)
        found = augment.blur(images, sigmas, 3)
        assert near(found[0], images[0])
        for result, image, sigma in zip(found[1:], images[1:], sigmas[1:].tolist()):
            axes = tuple(range(1, image.dim()))
            expected = ndimage.gaussian_filter(image.numpy().astype(float), sigma, mode="mirror", radius=3, axes=axes)
            assert near(result, expected)
    with pytest.raises(TilthError, match="radius 9"):
        augment.blur(pictures(), tensor(1, 1, 1), 9)


def test_solarising_inverts_from_the_threshold_on():
    row = tensor(0.25, 0.5, 0.75).reshape(1, 1, 1, 3).repeat(2, 1, 1, 1)
    assert augment.solarise(row, tensor(0.5, 2)).flatten(1).tolist() == [[0.25, 0.5, 0.25], [0.25, 0.5, 0.75]]
    assert augment.solarise(row[:1], tensor(0.7)).flatten().tolist() == [0.25, 0.5, 0.25]


def test_intensities_are_scaled_then_shifted_without_clipping():
    volumes = tensor(-1, 0.5, 2).reshape(1, 1, 3, 1, 1).repeat(2, 1, 1, 1, 1)
    assert augment.intensity(volumes, tensor(2, 1), tensor(0.5, 0)).flatten(1).tolist() == [[-1.5, 1.5, 4.5], [-1, 0.5, 2]]


def test_noise_has_each_examples_own_width_and_is_its_own():
    images, keys = torch.full((3, 2, 60, 60), 0.5), torch.tensor([5, 6, 7])
    found = augment.noise(images, keys, tensor(0, 0.1, 0.4)) - images
    assert found[0].abs().max() == 0
    assert found.std((1, 2, 3))[1:].tolist() == pytest.approx([0.1, 0.4], rel=0.05)
    assert abs(float(found.mean())) < 0.01
    assert near(found[2:], augment.noise(images[2:], keys[2:], tensor(0.4)) - images[2:], 0)


def test_cutout_fills_squares_and_cubes_that_may_stick_out():
    found = augment.cutout(torch.ones(3, 2, 4, 5), torch.tensor([[1, 2], [0, 4], [2, 2]]), torch.tensor([2, 3, 0]))
    expected = np.ones((3, 2, 4, 5))
    expected[0, :, 0:2, 1:3] = 0
    expected[1, :, 0:2, 3:5] = 0
    assert near(found, expected, 0)
    cube = augment.cutout(torch.ones(1, 1, 3, 3, 3), torch.tensor([[1, 1, 2]]), torch.tensor([1]), fill=0.5)
    assert cube[0, 0, 1, 1, 2] == 0.5 and float(cube.sum()) == 26.5
