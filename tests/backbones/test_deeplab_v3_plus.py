"""DeepLabV3+: dilated stages against the plain ResNet, what the pyramid reads, rates, the decoder."""

import pytest
import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel

from tests.backbones.segmenters import SIZE, made, pixels, with_history
from tilth.backbones.deeplab_v3_plus import AtrousPyramid
from tilth.backbones.dilated_resnet import DilatedResNet
from tilth.contracts import Sample


@pytest.mark.parametrize("layer", ["basic", "bottleneck"])
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
def test_dilation_keeps_what_a_reduced_map_says_and_adds_what_lies_between(layer, size):
    settings = {"channels": 2, "layer": layer, "stem": 8, "depths": [1, 2, 2, 2], "hidden_sizes": [8, 8, 16, 16]}
    torch.manual_seed(0)
    reduced = with_history(DilatedResNet(**settings, output_stride=32))
    values = torch.randn(2, 2, *size)
    plain = ResNetModel(
        ResNetConfig(num_channels=2, embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 2, 2, 2], layer_type=layer)
    ).eval()
    plain.load_state_dict(reduced.resnet.state_dict())
    maps = reduced(values)
    assert torch.equal(maps[-1], plain(values).last_hidden_state)
    for output_stride, last in ((16, 1), (8, 2)):
        dilated = DilatedResNet(**settings, output_stride=output_stride).eval()
        dilated.load_state_dict(reduced.state_dict())
        found = dilated(values)
        assert [f.shape[2] for f in found] == [-(-size[0] // min(stride, output_stride)) for stride in (4, 8, 16, 32)]
        for number in range(4):
            step = 2 ** max(0, number + last - 3)
            assert torch.allclose(found[number][:, :, ::step, ::step], maps[number], atol=1e-4)


def test_the_pyramid_reads_pixels_at_its_rates_and_the_whole_map():
    torch.manual_seed(0)
    pyramid = AtrousPyramid(3, 8, (2, 5))
    assert [branch[0].dilation[0] for branch in pyramid.branches] == [1, 2, 5]
    assert sum(weight.numel() for weight in pyramid.parameters()) == 3 * 8 * (1 + 9 + 9 + 1) + 32 * 8 + 5 * 16
    values, moved = torch.randn(1, 3, 17, 17), torch.zeros(1, 3, 17, 17)
    moved[..., 8, 8] = 1
    for branch, rate in zip(pyramid.branches, (0, 2, 5), strict=True):
        convolution = branch[0]  # norms read the whole map
        changed = (convolution(values + moved) - convolution(values)).abs().sum((0, 1)) > 1e-6
        places = {8 - rate, 8, 8 + rate}
        assert {tuple(place) for place in changed.nonzero().tolist()} == {(a, b) for a in places for b in places}
    # The pooled branch is the same at every pixel and sees them all.
    seen = []
    pyramid.joined.register_forward_hook(lambda _, given, __: seen.append(given[0][:, -8:]))
    pyramid(values)
    pyramid(values + moved)
    assert torch.equal(seen[0], seen[0][:, :, :1, :1].expand_as(seen[0])) and seen[0].any()
    assert not torch.equal(seen[0], seen[1])


def test_rates_are_doubled_where_the_output_stride_is_halved():
    sample = Sample(4, (64, 64))
    for output_stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36])):
        network = made("deeplab", sample, output_stride=output_stride, rates=[6, 12, 18], depths=[1] * 4, hidden_sizes=[8] * 4)
        assert [branch[0].dilation[0] for branch in network.pyramid.branches[1:]] == rates
        assert network.encoder(torch.randn(1, 4, 64, 64))[-1].shape[2] == 64 // output_stride


def test_the_decoder_reads_the_finest_stage_beside_the_pyramid():
    network, values = with_history(made("deeplab")), pixels()
    fine, _, coarse = network.encoder(network.standardise(values))
    up = lambda x, size: F.interpolate(x, size, mode="bilinear", align_corners=False)
    joined = network.decoder(torch.cat([up(network.pyramid(coarse), (4, 4)), network.low(fine)], 1))
    assert torch.allclose(network(values).logits, up(network.head(joined), SIZE), atol=1e-5)
