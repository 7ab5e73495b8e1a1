"""SimMIM: what is hidden, what counts, what the decoder and the targets are."""

import numpy as np
import pytest
import torch

from tilth.backbones.patches import Patches
from tilth.backbones.swin import SwinV2
from tilth.contracts import Batch, Noise, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.simmim import SimMIM, locally_normalised, masked_l1

NONE = use("views", "none")


def swin(sample: Sample = Sample(3, (32, 32))):
    torch.manual_seed(0)
    model = SwinV2(width=8, depths=[2, 2], heads=[1, 2], window=4, patch=2, drop_path=0.0).build(sample)
    with torch.no_grad():  # so that no branch is silent
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.5)
    return model


def patches(sample: Sample = Sample(3, (32, 32))):
    torch.manual_seed(0)
    return Patches(width=24, depth=1, heads=2, patch=4).build(sample)


def batch(pixels: torch.Tensor, start: int = 0) -> Batch:
    return Batch(pixel_values=pixels, keys=torch.from_numpy(Noise(0, np.arange(start, start + len(pixels))).keys()))


def test_192_pixels_have_36_blocks_of_which_22_are_hidden():
    model = SwinV2(width=8, depths=[1, 1, 1, 1], heads=[1, 1, 1, 1], window=12, patch=4).build(Sample(3, (192, 192)))
    objective = SimMIM(model)
    where = objective.mask(batch(torch.zeros(4, 3, 1, 1))["keys"], (192, 192)).where()
    cells = where.reshape(4, 6, 8, 6, 8).float().mean((2, 4)).flatten(1)
    assert cells.shape[1] == 36 and ((cells == 0) | (cells == 1)).all() and torch.equal(cells.sum(1), torch.full((4,), 22.0))
    assert objective.stride == (32, 32) and objective.decoder.out_features == 32 * 32 * 3


@pytest.mark.parametrize("build", [swin, patches])
def test_what_is_hidden_does_not_reach_the_prediction_and_what_is_seen_is_no_target(build):
    objective = SimMIM(build(), mask_block=8, views=NONE).eval()
    pixels = torch.rand(3, 3, 32, 32)
    given = batch(pixels)
    hidden = objective.mask(given["keys"], (32, 32)).where()
    side = 32 // objective.patch[0]
    shown = hidden.reshape(3, 1, side, side).repeat_interleave(objective.patch[0], 2).repeat_interleave(objective.patch[0], 3)
    other = torch.where(shown, torch.rand_like(pixels), pixels)

    def predicted(values):
        return objective.decode(objective.model(values, hidden=hidden, fill=objective.token).tokens, (32, 32))

    assert torch.equal(predicted(other), predicted(pixels))
    targets = objective.model.embedding(pixels).standardised(pixels)
    by_hand = sum((predicted(pixels)[i] - targets[i]).abs()[:, shown[i, 0]].mean().item() for i in range(3)) / 3
    assert objective(given).total.item() == pytest.approx(by_hand, rel=1e-5)
    elsewhere = torch.where(shown, targets, targets + 7)
    assert torch.equal(masked_l1(predicted(pixels), elsewhere, hidden, objective.patch), objective(given).total)


@pytest.mark.parametrize("build", [swin, patches])
def test_a_batch_twice_over_is_the_same_loss(build):
    objective, pixels = SimMIM(build(), mask_block=8, local=9, views=NONE).eval(), torch.rand(2, 3, 32, 32)
    once = batch(pixels)
    twice = Batch(pixel_values=pixels.repeat(2, 1, 1, 1), keys=once["keys"].repeat(2))
    assert objective(twice).total.item() == pytest.approx(objective(once).total.item(), rel=1e-6)
    assert objective(twice).count == 4


@pytest.mark.parametrize(
    ("build", "sample"),
    [(swin, Sample(1, (16, 64))), (swin, Sample(7, (32, 16))), (patches, Sample(2, (64,))), (patches, Sample(5, (8, 16)))],
)
def test_any_number_of_channels_and_maps_that_are_not_square(build, sample):
    objective = SimMIM(build(sample), mask_block=8, local=5, views=NONE)
    loss = objective(batch(torch.rand(2, sample.channels, *sample.size))).total
    loss.backward()
    assert loss.isfinite() and objective.token.grad.abs().sum() > 0 and objective.decoder.weight.grad.abs().sum() > 0


def test_a_one_hot_output_of_the_decoder_lights_one_pixel_of_each_cell():
    """And it is the pixel that a 1x1 convolution with torch's pixel shuffle lights."""
    model = SwinV2(width=8, depths=[1, 1, 1, 1], heads=[1, 1, 1, 1], window=2, patch=4).build(Sample(3, (64, 128)))
    objective = SimMIM(model)
    channel = 2 * 32 * 32 + 5 * 32 + 7
    with torch.no_grad():
        objective.decoder.weight.zero_()
        objective.decoder.bias.zero_()[channel] = 1.0
    made = objective.decode(torch.randn(1, 8, 64), (64, 128))
    assert made.shape == (1, 3, 64, 128) and made.sum() == 8
    assert (made[0, 2, 5::32, 7::32] == 1).all()
    shuffled = torch.nn.functional.pixel_shuffle(torch.eye(3 * 32 * 32)[channel].reshape(1, -1, 1, 1).expand(1, -1, 2, 4), 32)
    assert torch.equal(made, shuffled)


def test_local_targets_are_windows_statistics_without_what_lies_outside():
    values = torch.randn(2, 3, 12, 10) * 3 + 5
    made = locally_normalised(values, 7)
    for row, column in ((0, 0), (6, 5), (11, 3), (4, 9)):
        window = values[1, 2, max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4]
        expected = (values[1, 2, row, column] - window.mean()) / (window.var(unbiased=True) + 1e-6).sqrt()
        assert made[1, 2, row, column].item() == pytest.approx(expected.item(), abs=1e-4)


def test_local_targets_of_a_constant_are_zero_and_an_affine_change_leaves_them():
    assert locally_normalised(torch.full((1, 3, 32, 32), 0.3), 47).abs().max() < 1e-3
    values = torch.rand(2, 3, 32, 32)
    assert torch.allclose(locally_normalised(values * 4 - 3, 47), locally_normalised(values, 47), atol=1e-3)


def test_what_cannot_be_is_told():
    with pytest.raises(TilthError, match="not made of patches"):
        SimMIM(swin(), mask_block=7)
    with pytest.raises(TilthError, match="no middle"):
        SimMIM(swin(), mask_block=8, local=8)
    with pytest.raises(TilthError, match="do not divide"):
        SimMIM(swin(), mask_block=12, views=NONE)(batch(torch.rand(1, 3, 32, 32)))
    groups = Patches(width=32, depth=1, heads=2, patch=4, groups=[[0], [1, 2]]).build(Sample(3, (16, 16)))
    with pytest.raises(TilthError, match="together"):
        SimMIM(groups)
