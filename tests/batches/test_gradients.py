"""Gradient targets: what is flat is 0, what is steep is known in closed form, what is multiplied stays the same or does not."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from tilth.batches.draws import uniform
from tilth.batches.images.augment import grey
from tilth.batches.patches.gradients import ratio_gradient, ratio_gradients, sobel, sobel_magnitude
from tilth.batches.patches.patchify import patchify
from tilth.errors import TilthError


def speckle(mean, looks, shape, seed=0):
    """Gamma noise of `looks` looks, of that mean."""
    return torch.from_numpy(np.random.default_rng(seed).gamma(looks, mean / looks, shape)).float()


@pytest.mark.parametrize("shape", [(2, 1, 20, 28), (2, 1, 12, 10, 14)])
@pytest.mark.parametrize("taps", [3, 5])
def test_sobel_is_that_of_scipy(shape, taps):
    values = torch.rand(*shape, dtype=torch.float64)
    found = sobel(values, taps)
    axes = len(shape) - 2
    smooth, scale = {3: (None, 2 * 4 ** (axes - 1)), 5: ([1, 4, 6, 4, 1], 8 * 16 ** (axes - 1))}[taps]
    for axis in range(axes):
        for example in range(2):
            image = values[example, 0].numpy()
            if taps == 3:
                wanted = ndimage.sobel(image, axis, mode="mirror")
            else:
                wanted = ndimage.correlate1d(image, [-1, -2, 0, 2, 1], axis, mode="mirror")
                for other in set(range(axes)) - {axis}:
                    wanted = ndimage.correlate1d(wanted, smooth, other, mode="mirror")
            np.testing.assert_allclose(found[example, axis], wanted / scale, atol=1e-12)
    torch.testing.assert_close(sobel_magnitude(values, taps)[:, 0], found.abs().mean(1))


@pytest.mark.parametrize("size", [(16, 24), (12, 16, 8)])
def test_sobel_of_flat_is_0_of_a_ramp_its_slope_and_turns_with_the_input(size):
    assert not sobel_magnitude(torch.full((1, 1, *size), 0.7)).any()
    ramp = (0.25 * torch.arange(size[-1]) + 3).expand(1, 1, *size).contiguous()
    inner = sobel_magnitude(ramp)[..., 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.25 / len(size)))
    values = torch.rand(1, 1, *size)
    for back in (sobel_magnitude(values.transpose(2, 3)), ratio_gradient(values.transpose(2, 3), 3)):
        assert back.shape[2:4] == (size[1], size[0])
    torch.testing.assert_close(sobel_magnitude(values.transpose(2, 3)).transpose(2, 3), sobel_magnitude(values))
    torch.testing.assert_close(ratio_gradient(values.transpose(2, 3), 3).transpose(2, 3), ratio_gradient(values, 3))


def test_derivatives_run_along_space_and_not_along_channels():
    picture = np.random.default_rng(0).random((20, 24, 3))  # height, width, channels
    one = picture @ np.array([0.299, 0.587, 0.114])
    wanted = (np.abs(ndimage.sobel(one, 0, mode="mirror")) + np.abs(ndimage.sobel(one, 1, mode="mirror"))) / 2 / 8
    ours = sobel_magnitude(grey(torch.from_numpy(picture).movedim(-1, 0)[None]), taps=3)
    np.testing.assert_allclose(ours[0, 0], wanted, atol=1e-12)


def test_a_sobel_magnitude_grows_with_the_gain_and_a_ratio_gradient_does_not():
    values = speckle(0.5, 4, (1, 1, 48, 48)).double()
    for gain in (0.1, 3.0):
        torch.testing.assert_close(sobel_magnitude(gain * values), gain * sobel_magnitude(values))
        for radius in (5, 9, 13, 17):
            given = ratio_gradient(values, radius, offset=0)
            torch.testing.assert_close(ratio_gradient(gain * values, radius, offset=0), given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("radius", [5, 9, 13, 17])
def test_a_constant_has_no_ratio_gradient_at_all_and_a_step_the_one_of_the_equation(radius):
    assert torch.equal(ratio_gradient(torch.full((1, 1, 40, 30), 0.37), radius), torch.zeros(1, 1, 40, 30))
    low, high, edge = 0.2, 0.8, 32  # columns 0 to 31 are low
    step = torch.full((1, 1, 64, 64), low, dtype=torch.float64)
    step[..., edge:] = high
    found = ratio_gradient(step, radius)
    wanted = abs(np.log((low + 0.01 + radius * (high + 0.01)) / ((radius + 1) * (low + 0.01))))
    assert found.max().item() == pytest.approx(wanted, rel=1e-9)
    assert wanted == pytest.approx({5: 1.2182, 9: 1.2730, 13: 1.2956, 17: 1.3079}[radius], abs=5e-5)
    torch.testing.assert_close(found[0, 0].argmax(1), torch.full((64,), edge - 1))
    assert torch.equal(found, found[:, :, :1].expand_as(found))  # nothing along the edge
    torch.testing.assert_close(ratio_gradient(step.mT.contiguous(), radius), found.mT)


def test_ratio_gradients_are_those_of_the_definition():
    values = torch.rand(1, 1, 14, 12, dtype=torch.float64)
    radius = 3
    padded = np.pad(values[0, 0].numpy(), radius, mode="reflect") + 0.01
    found = ratio_gradient(values, radius)
    for y, x in ((0, 0), (5, 7), (13, 11)):
        window = padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1]
        up, down = window[: radius + 1].sum(), window[radius:].sum()
        left, right = window[:, : radius + 1].sum(), window[:, radius:].sum()
        assert found[0, 0, y, x].item() == pytest.approx(np.hypot(np.log(left / right), np.log(up / down)), rel=1e-10)


def test_false_alarms_are_as_many_in_bright_clutter_as_in_dark():
    means = (0.1, 0.2, 0.4, 0.8)
    ratio = [ratio_gradient(speckle(mean, 4, (1, 1, 256, 256)), 5).mean().item() for mean in means]
    steep = [8 * sobel(speckle(mean, 4, (1, 1, 256, 256))).norm(dim=1).mean().item() for mean in means]
    assert ratio == pytest.approx([0.0897, 0.0934, 0.0966, 0.0979], rel=0.03)
    assert max(ratio) / min(ratio) < 1.1 and steep[3] / steep[0] == pytest.approx(8, rel=1e-3)
    assert steep[0] == pytest.approx(0.21, abs=0.01) and steep[3] == pytest.approx(1.71, abs=0.05)


def test_targets_of_several_radii_are_radius_by_radius_and_without_gradient():
    values = uniform(torch.arange(2), "values", 1, 64, 48).requires_grad_()
    radii = (5, 9, 13, 17)
    targets = patchify(ratio_gradients(values, radii), (16, 16))
    assert targets.shape == (2, 12, 1024) and not targets.requires_grad
    for number, radius in enumerate(radii):
        alone = patchify(ratio_gradient(values, radius), (16, 16))
        assert torch.equal(targets[..., 256 * number : 256 * (number + 1)], alone)


def test_a_radius_beyond_the_input_is_told():
    with pytest.raises(TilthError, match="radius 16 has no place") as caught:
        ratio_gradient(torch.rand(1, 1, 16, 20), 16)
    assert "at most 15" in caught.value.hint
