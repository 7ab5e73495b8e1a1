"""SatMAE++: groups of bands, pictures at several scales, and MAE as a special case."""

import pytest
import torch
from torch.nn import functional as F

from tilth.backbones.folder import load, save
from tilth.backbones.patches import Patches
from tilth.batches.patches.patchify import patchify
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.mae import MAE
from tilth.pretrain.images.sat_mae_pp import SatMAEPP
from tilth.pretrain.images.upsampling import Residual, Upsampler, pyramid

GROUPS = [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]]
DECODER = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2, "views": use("views", "none")}


def encoder(channels=10, size=16, **settings):
    torch.manual_seed(0)
    sample = Sample(channels, (size, size), (0.5,) * channels, (0.25,) * channels)
    return Patches(**{"width": 32, "depth": 2, "heads": 2, "patch": 2, "groups": GROUPS, **settings}).build(sample)


def objective(model=None, **settings):
    torch.manual_seed(1)
    return SatMAEPP(encoder() if model is None else model, **{**DECODER, **settings})


def batch(channels=10, size=16, count=3):
    torch.manual_seed(2)
    return Batch(pixel_values=torch.rand(count, channels, size, size), keys=torch.arange(count) * 7 + 1)


def standardised(made, given):
    return [made.model.embedding(level).standardised(level) for level in pyramid(given.pixel_values, made.scales)]


def test_perfect_predictions_have_no_error_and_bands_come_back_in_their_order():
    made, given = objective(), batch()
    levels = standardised(made, given)
    perfect = [patchify(levels[0][:, group], (2, 2)) for group in GROUPS]
    mask = made.mask(given["keys"], 4)
    assert made.losses(perfect, levels, mask)["reconstruction"].item() == 0
    assert torch.equal(made.picture(perfect, (2, 2)), levels[0])
    # Half of a standard deviation off in one band of one group is seen as that and nothing more.
    perfect[1][:, :, 4:8] += 0.5
    hidden = (mask.hidden // 4 == 1).float().mean()
    assert made.losses(perfect, levels, mask)["reconstruction"].item() == pytest.approx(0.25 * 0.25 * hidden.item(), rel=1e-5)
    assert torch.allclose((made.picture(perfect, (2, 2)) - levels[0]).amax((0, 2, 3)), 0.5 * (torch.arange(10) == 4))


def test_masks_have_the_counts_of_the_paper():
    keys = torch.arange(5)
    mask = objective(mask_ratio=0.75).mask(keys, 144)
    assert mask.tokens == 432 and mask.kept.shape == (5, 108)
    assert not torch.equal(mask.where()[:, :144], mask.where()[:, 144:288])
    spatial = objective(mask_ratio=0.75, spatial_mask=True).mask(keys, 144)
    groups = spatial.where().reshape(5, 3, 144)
    assert torch.equal(groups[:, 0], groups[:, 1]) and torch.equal(groups[:, 0], groups[:, 2])
    assert ((~groups[:, 0]).sum(1) == 36).all() and torch.equal(spatial.kept, spatial.kept.sort(1).values)


def test_positions_of_the_decoder_are_place_and_group_side_by_side():
    table, aside = objective().decoder.positions((3, 4))
    table = table.reshape(3, 12, 32)
    assert torch.equal(table[0, :, :24], table[2, :, :24]) and torch.equal(table[1, 0, 24:], table[1, 7, 24:])
    assert not torch.equal(table[0, 0, 24:], table[1, 0, 24:])
    assert not aside[0, 0, :24].any() and not any(torch.equal(aside[0, 0, 24:], table[g, 0, 24:]) for g in range(3))


@pytest.mark.parametrize(("channels", "scales", "size"), [(10, 2, 96), (3, 1, 8), (1, 3, 4)])
def test_pictures_grow_by_two_at_every_scale(channels, scales, size):
    found = Upsampler(channels, scales)(torch.rand(1, channels, size, size))
    assert [picture.shape for picture in found] == [(1, channels, size * 2**n, size * 2**n) for n in range(1, scales + 1)]


def test_a_residual_block_without_its_second_convolution_is_the_identity():
    block, x = Residual(8), torch.randn(2, 8, 5, 5)
    torch.nn.init.zeros_(block.second.weight)
    torch.nn.init.zeros_(block.second.bias)
    assert torch.equal(block(x), x)


def test_halving_is_bilinear_halving():
    pictures = torch.rand(2, 3, 16, 24)
    quarter, half, whole = pyramid(pictures, 2)
    torch.testing.assert_close(
        half, F.interpolate(whole, scale_factor=0.5, mode="bilinear", align_corners=False), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(
        quarter, F.interpolate(half, scale_factor=0.5, mode="bilinear", align_corners=False), rtol=0, atol=1e-7
    )
    assert torch.equal(whole, pictures)


def test_the_loss_is_linear_in_its_weights():
    losses = [objective(reconstruction=a, multi_scale=b)(batch()) for a, b in ((0.6, 0.4), (1.0, 2.0))]
    for loss, (a, b) in zip(losses, ((0.6, 0.4), (1.0, 2.0)), strict=True):
        assert loss.total.item() == pytest.approx(
            a * loss.parts["reconstruction"].item() + b * loss.parts["multi_scale"].item(), rel=1e-6
        )
    assert losses[0].parts["multi_scale"] == losses[1].parts["multi_scale"]


def test_the_scales_weigh_alike_and_cover_every_pixel():
    made, given = objective(), batch()
    levels, mask = standardised(made, given), made.mask(given["keys"], 4)
    predicted = [torch.zeros(3, 4, 4 * len(group)) for group in GROUPS]
    fixed = [torch.zeros_like(level) for level in levels[1:]]
    made.upsampler.forward = lambda picture: fixed
    expected = sum(level.abs().mean() for level in levels[1:]) / 2
    torch.testing.assert_close(made.losses(predicted, levels, mask)["multi_scale"], expected)


def test_only_the_larger_scales_teach_what_is_predicted_where_the_picture_was_seen():
    made, given = objective(), batch()
    levels, mask = standardised(made, given), made.mask(given["keys"], 4)
    predicted = [values.detach().requires_grad_() for values in made.predictions(pyramid(given.pixel_values, 2)[0], mask)]
    for name, reached in (("reconstruction", False), ("multi_scale", True)):
        gradients = torch.autograd.grad(made.losses(predicted, levels, mask)[name], predicted)
        size = torch.cat([gradient.abs().sum(-1) for gradient in gradients], 1)
        assert (
            bool((size.gather(1, mask.kept) > 0).all()) is reached and bool((size.gather(1, mask.kept) == 0).all()) is not reached
        )
        assert (size.gather(1, mask.hidden) > 0).all()


def test_without_groups_and_scales_it_is_mae_on_the_reduced_picture():
    ours = objective(encoder(3, 16, groups=None), multi_scale=0.0, reconstruction=1.0)
    assert ours.upsampler is None
    theirs = MAE(encoder(3, 4, groups=None), normalise=False, **DECODER)
    state = {name.replace("heads.0", "head"): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    given = batch(3)
    reduced = Batch(pixel_values=F.avg_pool2d(given.pixel_values, 4), keys=given["keys"])
    assert ours(given).total.item() == pytest.approx(theirs(reduced).total.item(), rel=1e-5)


def test_a_band_in_no_group_changes_nothing():
    made = objective(encoder(groups=[[1, 2, 6], [3, 4, 9]]))
    given, other = batch(), batch()
    other.pixel_values[:, [0, 5, 7, 8]] = 9.0
    assert made(given).total == made(other).total
    assert made.upsampler(torch.rand(1, 6, 4, 4))[1].shape == (1, 6, 16, 16)


@pytest.mark.parametrize("settings", [{}, {"class_token": True}, {"groups": None, "class_token": True, "position": "learned"}])
def test_every_weight_learns_and_batches_do_not_depend_on_their_company(settings):
    made = objective(encoder(**settings))
    loss = made(batch(count=4))
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in made.parameters()) and loss.count == 4
    whole = batch(count=4)
    parts = [Batch(pixel_values=whole.pixel_values[i : i + 2], keys=whole["keys"][i : i + 2]) for i in (0, 2)]
    assert loss.total.item() == pytest.approx(sum(made(part).total.item() for part in parts) / 2, rel=1e-5)


@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_the_encoder_becomes_one_of_the_reduced_size_once(position, tmp_path):
    model = encoder(3, 32, groups=None, position=position)
    first = objective(model)
    assert model.config.inputs[0]["size"] == [8, 8] and model.embeddings["2d"].grid == (4, 4)
    again = objective(model)
    assert model.config.inputs[0]["size"] == [8, 8]
    again.load_state_dict(first.state_dict())
    save(model, None, tmp_path / "model", {"history": []})
    loaded = load(tmp_path / "model").model
    pictures = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(pictures).tokens, model.eval()(pictures).tokens)
    objective(loaded, scales=1)  # of the same data, halved once
    assert loaded.config.inputs[0]["size"] == [16, 16]


def test_what_cannot_be_is_told_before_training():
    with pytest.raises(TilthError, match="two groups"):
        objective(encoder(groups=[[0, 1], [1, 2]]))
    with pytest.raises(TilthError, match="cannot be reduced 8 times"):
        objective(encoder(size=20, groups=None), scales=3)
    with pytest.raises(TilthError, match="do not divide"):
        objective(encoder(size=12), scales=2)
    with pytest.raises(TilthError, match="only pictures"):
        objective(Patches(width=24, depth=1, heads=2, patch=2).build(Sample(1, (8, 8, 8))))
