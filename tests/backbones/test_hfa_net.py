"""HFA-Net: fixed filters for edges, attention around 1, one encoder for both dates."""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from tests.backbones import change_networks as check
from tests.backbones.segmenters import ODD, SAMPLE, SIZE, pixels
from tilth.backbones.hfa_net import HighFrequency, HighFrequencyAttention, HighFrequencyEnhancement, SpatialAttention
from tilth.contracts import Sample

NAME, SETTINGS = "hfa_net", {"widths": [8, 16, 16]}


def made(sample=SAMPLE, **more):
    return check.made(NAME, SETTINGS, sample, **more)


def test_a_toy_map_of_change_is_learnt_and_the_filters_stay_as_they_are():
    network = made(widths=[16, 16])
    filters = [part for part in network.modules() if isinstance(part, HighFrequency)]
    assert len(filters) == 1 + 2 * 2 + 2 and not any(list(part.parameters()) for part in filters)
    check.check_learns(network)
    for part in filters:
        assert torch.equal(part.slopes, HighFrequency().slopes) and torch.equal(part.smoothing, HighFrequency().smoothing)


def test_what_both_dates_share_reaches_both():
    check.check_shared_channels(NAME, SETTINGS, "filter")


def test_what_cannot_be_is_told():
    check.check_refusals(NAME, SETTINGS, 16)


def test_the_dates_share_their_weights_and_their_order_is_in_the_fusion_alone():
    def unswapped(network):
        for fuse in network.fused:
            check.swap_halves(fuse)

    check.check_order(made(Sample(4, SIZE)), unswapped)


def test_each_levels_fusion_reads_both_dates_maps():
    network, values = made().eval(), pixels(2, ODD)
    first, second = (network.maps(date) for date in network.standardise(values).split(2, 1))
    seen = []
    for fuse in network.fused:
        fuse.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(values)
    assert [tuple(x.shape) for x in seen] == [(2, 16, 37, 22), (2, 32, 18, 11), (2, 32, 9, 5)]
    for found, a, b in zip(seen, first, second, strict=True):
        assert torch.allclose(found, torch.cat([a, b], 1), atol=1e-5)


def test_the_filter_is_four_isotropic_sobel_slopes_of_a_smoothed_map_each_channel_by_itself():
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    smooth, slopes = HighFrequency()(x)
    straight = np.outer([1, 0, -1], [1, math.sqrt(2), 1])
    slanted = np.array([[0, 1, math.sqrt(2)], [-1, 0, 1], [-math.sqrt(2), -1, 0]])
    kernels = [straight, slanted, straight.T, slanted[:, ::-1]]
    # Every kernel is what the one before becomes when it is turned by an eighth.
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    around = [np.abs(np.fft.fft([kernel[place] for place in ring])) for kernel in kernels]
    assert all(np.allclose(a, around[0]) for a in around)
    for example in range(2):
        for channel in range(3):
            plane = x[example, channel].double().numpy()
            expected = ndimage.correlate(plane, np.outer([1, 2, 1], [1, 2, 1]) / 16, mode="nearest")
            assert np.allclose(smooth[example, channel], expected, atol=1e-5)
            magnitudes = [np.abs(ndimage.correlate(expected, kernel, mode="nearest")) for kernel in kernels]
            assert np.allclose(slopes[example, channel], np.mean(magnitudes, 0), atol=1e-5)


def test_a_constant_map_has_no_high_frequency_and_a_straight_edge_has_what_it_should():
    smooth, slopes = HighFrequency()(torch.full((1, 2, 5, 6), 3.0))
    assert torch.allclose(smooth, torch.tensor(3.0)) and slopes.abs().max() < 1e-5
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 1
    slopes = HighFrequency()(edge)[1][0, 0]
    # Smoothed, the edge is 0, 1/4, 3/4, 1: a rise of 3/4 over two pixels beside it, of 1/4 next to those.
    whole = (2 + math.sqrt(2) + 2 * (1 + math.sqrt(2))) / 4
    expected = torch.tensor([0, 0, 0.25, 0.75, 0.75, 0.25, 0, 0]) * whole
    assert torch.allclose(slopes, expected.expand(8, 8), atol=1e-6)


def test_attention_in_space_weighs_all_channels_of_a_pixel_between_once_and_twice():
    torch.manual_seed(0)
    attention, x = SpatialAttention(32), torch.rand(2, 32, 13, 10) + 0.5
    factor = attention(x) / x
    assert torch.allclose(factor, factor[:, :1].expand_as(factor), atol=1e-5)
    assert 1 < factor.min() < factor.max() < 2 and factor[:, 0].std((1, 2)).min() > 1e-2


def test_enhancement_joins_weighed_channels_and_slopes():
    torch.manual_seed(0)
    enhance, x = HighFrequencyEnhancement(8), torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        enhance.joined.bias.zero_()
        enhance.joined.weight[:] = torch.cat([torch.zeros(8, 8), torch.eye(8)], 1)[..., None, None]
        assert torch.allclose(enhance(x), HighFrequency()(x)[1], atol=1e-6)
        enhance.joined.weight[:] = torch.cat([torch.eye(8), torch.zeros(8, 8)], 1)[..., None, None]
        factor = enhance(x) / x
    assert torch.allclose(factor, factor[..., :1, :1].expand_as(factor), atol=1e-4) and 1 < factor.min() < factor.max() < 2
    assert torch.allclose(factor[:, :, 0, 0], 1 + enhance.weights(x.mean((2, 3), keepdim=True))[:, :, 0, 0], atol=1e-4)
    parts = list(HighFrequencyAttention(8))
    assert [type(part) for part in parts] == [SpatialAttention, HighFrequencyEnhancement]


def test_convolutions_have_as_many_weights_as_the_authors():
    with torch.device("meta"):
        network = check.made(NAME, {}, Sample(4, (224, 224)))
    # Theirs has 59 465 767 weights in convolutions, transposed ones of 3 x 3, and 2 445 312 in linear layers of channel attention.
    weights = 0
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            weights += part.weight.numel() * (9 if isinstance(part, nn.ConvTranspose2d) else 4) // 4
    assert weights == 59_465_767 + 2_445_312
