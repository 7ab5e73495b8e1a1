"""ADHR-CDNet: a pyramid of differences, branches that exchange what they see, weights of branches at every pixel."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.backbones import change_networks as check
from tests.backbones.segmenters import ODD, SAMPLE, SIZE, pixels
from tilth.backbones.adhr_cd_net import Exchange, MultiScaleAttention
from tilth.contracts import Sample
from tilth.errors import TilthError

NAME, SETTINGS = "adhr_cd_net", {"widths": [4, 8, 16], "blocks": 1, "hidden": 16}


def made(sample=SAMPLE, **more):
    return check.made(NAME, SETTINGS, sample, **more)


def test_a_toy_map_of_change_is_learnt():
    check.check_learns(made())


def test_what_both_dates_share_reaches_both():
    check.check_shared_channels(NAME, SETTINGS, "pyramid.finest")


def test_what_cannot_be_is_told():
    check.check_refusals(NAME, SETTINGS, 8)
    with pytest.raises(TilthError, match="two or more"):
        made(widths=[4])


def test_equal_dates_have_no_differences_and_the_order_of_dates_is_no_matter_to_them():
    pyramid = made(Sample(4, SIZE)).pyramid
    first, second = torch.randn(2, 2, *ODD), torch.randn(2, 2, *ODD)
    there, back, same = pyramid(first, second), pyramid(second, first), pyramid(first, first)
    assert [tuple(x.shape) for x in there] == [(2, 4, 37, 22), (2, 8, 19, 11), (2, 16, 10, 6)]
    for a, b, nothing in zip(there, back, same, strict=True):
        assert torch.allclose(a, b, atol=1e-5) and a.min() >= 0 and a.max() > 0.1 and nothing.max() < 1e-5
    finest = pyramid.finest(first) - pyramid.finest(second)
    assert torch.allclose(there[0], finest.abs(), atol=1e-5)


def test_the_dates_share_their_weights_and_their_order_is_in_one_convolution_alone():
    check.check_order(made(Sample(4, SIZE)), lambda network: check.swap_halves(network.together))


def test_a_difference_joins_every_coarser_branch_when_it_begins():
    network, values = made().eval(), pixels(2, ODD)
    differences = network.pyramid(*network.standardise(values).split(2, 1))
    seen = []
    for tell in network.told:
        tell.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    maps = network.branches(values)
    assert [tuple(x.shape) for x in maps] == [(2, 4, 37, 22), (2, 8, 19, 11), (2, 16, 10, 6)]
    assert len(seen) == 2
    for found, difference in zip(seen, differences[1:], strict=True):
        assert torch.allclose(found[:, found.shape[1] // 2 :], difference, atol=1e-6)


def test_branches_exchange_what_they_see_and_a_coarser_one_begins():
    torch.manual_seed(0)
    exchange = Exchange([4, 8, 16], 2)
    fine, coarse = torch.randn(2, 4, 13, 10), torch.randn(2, 8, 7, 5)
    found = exchange([fine, coarse])
    paths = [[exchange[target].paths[source] for source in range(2)] for target in range(3)]
    up = F.interpolate(paths[0][1](coarse), (13, 10), mode="bilinear", align_corners=False)
    expected = [fine + up, paths[1][0](fine) + coarse, paths[2][0](fine) + paths[2][1](coarse)]
    assert [tuple(x.shape) for x in found] == [(2, 4, 13, 10), (2, 8, 7, 5), (2, 16, 4, 3)]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, F.relu(b), atol=1e-6)
    strides = [part.stride[0] for part in exchange[2].paths[0].modules() if isinstance(part, nn.Conv2d)]
    assert strides == [2, 2]


def test_branches_are_averaged_at_every_pixel_with_weights_of_its_own():
    torch.manual_seed(0)
    attention = MultiScaleAttention([4, 8], 16)
    fine, coarse = torch.randn(2, 4, 12, 10), torch.randn(2, 8, 6, 5)
    up = F.interpolate(attention.narrowed[1](coarse), (12, 10), mode="bilinear", align_corners=False)
    scores = attention.scores(torch.cat([fine, up], 1)).exp()
    expected = (fine * scores[:, :1] + up * scores[:, 1:]) / scores.sum(1, keepdim=True)
    assert torch.allclose(attention([fine, coarse]), expected, atol=1e-5)
    with torch.no_grad():  # one branch far above the other is all that is left
        attention.scores[1].bias.copy_(torch.tensor([0.0, 100.0]))
    assert torch.allclose(attention([fine, coarse]), up, atol=1e-5)


def test_convolutions_have_as_many_weights_as_the_authors():
    with torch.device("meta"):
        network = check.made(NAME, {}, Sample(4, (224, 224)))
    # Of those that their network uses.
    assert sum(part.weight.numel() for part in network.modules() if isinstance(part, nn.Conv2d)) == 12_064_544
