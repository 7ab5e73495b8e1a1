"""TransUNetCD: a shared residual network, tokens of both dates, a way up multiplied by the enhanced difference."""

import pytest
import torch
from torch.nn import functional as F

from tests.backbones import change_networks as check
from tests.backbones.segmenters import ODD, SAMPLE, SIZE, pixels, with_history
from tilth.backbones.trans_unet_cd import DifferenceEnhancement
from tilth.contracts import Sample
from tilth.errors import TilthError
from tilth.registry import configure

NAME = "trans_unet_cd"
SETTINGS = {
    "layer": "basic", "stem": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "width": 16, "depth": 2, "heads": 2,
    "widths": [16, 16, 8, 8],
}  # fmt: skip


def made(sample=SAMPLE, **more):
    return check.made(NAME, SETTINGS, sample, **more)


def test_a_toy_map_of_change_is_learnt():
    check.check_learns(made())


def test_what_both_dates_share_reaches_both():
    check.check_shared_channels(NAME, SETTINGS, "encoder.embedder.embedder")


def test_what_cannot_be_is_told():
    check.check_refusals(NAME, SETTINGS, 16)
    for settings, message in (
        ({"heads": 3}, "heads cannot share"),
        ({"depths": [1]}, "each stage needs a number in every list"),
        ({"widths": [16, 16, 8]}, "the way up from 2 stages has 4 widths, not 3"),
    ):
        with pytest.raises(TilthError, match=message):
            made(**settings)


def test_the_dates_share_their_weights_and_their_order_is_where_both_are_read():
    def unswapped(network):
        check.swap_halves(network.projected)
        with torch.no_grad():
            for up, skip in zip(network.up, (8, 8), strict=True):
                first = up[0].weight
                first.copy_(torch.cat([first[:, : -2 * skip], first[:, -skip:], first[:, -2 * skip : -skip]], 1))
            network.enhanced.first[0].weight.neg_()  # it reads the difference with its sign

    check.check_order(made(Sample(4, SIZE)), unswapped)


def test_equal_dates_have_no_difference_and_logits_of_nothing():
    network, values = with_history(made(Sample(4, SIZE))), pixels(2, ODD, Sample(4, SIZE))
    seen = []
    network.enhanced.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    logits = network(torch.cat([values[:, :2], values[:, :2]], 1)).logits
    assert not seen[0][0].any() and not seen[0][1].any()  # norms are fresh, and leave nothing as nothing
    assert torch.equal(logits, network.head.bias.reshape(-1, 1, 1).expand_as(logits))
    network(values)
    assert torch.equal(seen[1][0], values[:, :2] - values[:, 2:]) and seen[1][1].any()


def test_the_encoder_is_transformers_resnet_with_its_stem():
    network, values = with_history(made()), pixels(2, ODD)
    first, second = network.standardise(values).split(2, 1)
    maps = network.maps(first, second)
    assert [tuple(x.shape) for x in maps] == [(2, 16, 19, 11), (2, 16, 10, 6), (2, 32, 5, 3)]
    for half, date in enumerate((first, second)):
        stages = network.encoder(date, output_hidden_states=True).hidden_states
        for found, stage in zip(maps[1:], stages[1:], strict=True):
            assert torch.allclose(found.chunk(2, 1)[half], stage, atol=1e-5)
        pooled = F.max_pool2d(maps[0].chunk(2, 1)[half], 3, 2, 1)
        assert torch.allclose(pooled, stages[0], atol=1e-5)


def test_a_pixel_of_the_coarsest_map_reads_all_others_and_knows_its_place():
    network = with_history(made(Sample(4, (64, 48))))
    assert network.positions.shape == (1, 8 * 6, 16)
    network.narrowed = torch.nn.Identity()  # its norms read the whole map anyway
    coarse = torch.randn(1, 32, 8, 6)
    moved = coarse.clone()
    moved[..., 7, 5] += torch.randn(32)
    changed = (network.context(moved) - network.context(coarse)).abs().amax(1)
    assert changed.shape == (1, 8, 6) and changed.min() > 1e-7
    turned = network.context(coarse.flip(3)).flip(3)
    assert not torch.allclose(turned, network.context(coarse), atol=1e-3)
    with torch.no_grad():
        network.positions.zero_()
    assert torch.allclose(network.context(coarse.flip(3)).flip(3), network.context(coarse), atol=1e-5)


def test_the_way_up_reads_both_dates_skips_and_is_multiplied_by_the_enhanced_difference():
    network, values = with_history(made()), pixels(2, ODD)
    first, second = network.standardise(values).split(2, 1)
    fine, middle, coarse = network.maps(first, second)
    up = lambda x, size: F.interpolate(x, size, mode="bilinear", align_corners=False)
    x = network.up[0](torch.cat([up(network.context(coarse), (10, 6)), middle], 1))
    x = network.up[1](torch.cat([up(x, (19, 11)), fine], 1))
    expected = network.head(network.last(up(x, ODD)) * network.enhanced(first - second))
    assert torch.allclose(network(values).logits, expected, atol=1e-5)


def test_enhancement_weighs_pixels_by_their_mean_and_maximum():
    torch.manual_seed(0)
    enhance, x = DifferenceEnhancement(2, 8), torch.randn(2, 2, 12, 9)
    inside = enhance.first(x)
    inside = inside + enhance.second(inside)
    told = torch.stack([inside.mean(1), inside.max(1).values], 1)
    weights = F.conv2d(told, enhance.weights[0].weight, enhance.weights[0].bias, padding=3).sigmoid()
    assert weights.shape == (2, 1, 12, 9) and torch.allclose(enhance(x), inside * weights, atol=1e-6)


def test_the_default_is_resnet_50_and_vit_b():
    config = configure("backbone", {NAME: {"classes": 3}}).build()
    assert (config.layer, config.stem, config.depths, config.hidden_sizes) == ("bottleneck", 64, (3, 4, 6), (256, 512, 1024))
    with torch.device("meta"):
        network = config.build(Sample(4, (224, 224)))
    # Twelve blocks of ViT-B: 4 w^2 + 8 w^2 weights, their biases and norms.
    assert sum(weight.numel() for weight in network.blocks.parameters()) == 12 * (12 * 768**2 + 13 * 768)
    assert network.config.grid == (14, 14)
