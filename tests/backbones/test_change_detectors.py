"""BIT and ChangeFormer: how dates are told apart and compared."""

import pytest
import torch
from torch.nn import functional as F

from tests.backbones.segmenters import ODD, SIZE, made, pixels, with_history
from tilth.backbones.two_dates import two_dates
from tilth.contracts import Sample


def test_dates_are_split_with_what_they_share():
    before, after, shared = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4), torch.randn(2, 1, 4, 4)
    first, second = two_dates(torch.cat([before, after, shared], 1), 1)
    assert torch.equal(first, torch.cat([before, shared], 1)) and torch.equal(second, torch.cat([after, shared], 1))


@pytest.mark.parametrize("name", ["bit_cd", "change_former"])
def test_what_both_dates_share_reaches_both(name):
    sample = Sample(5, SIZE)
    network, values = with_history(made(name, sample, shared=1)), pixels(2, SIZE, sample)
    seen = []
    network.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert network(values).logits.shape == (2, 3, *SIZE)
    assert torch.equal(seen[0], torch.cat([values[:, [0, 1, 4]], values[:, [2, 3, 4]]]))


def of_equal_dates(values):
    return torch.cat([values[:, :2], values[:, :2]], 1)


def test_bit_sees_no_difference_between_equal_dates_where_positions_are_equal():
    sample = Sample(4, SIZE)
    network, values = with_history(made("bit_cd", sample)), pixels(2, ODD, sample)
    same = of_equal_dates(values)
    assert network.difference(same).abs().max() > 1e-4  # positions tell the dates apart
    with torch.no_grad():
        network.positions[4:] = network.positions[:4]
    assert network.difference(same).abs().max() < 1e-5
    assert torch.allclose(network(same).logits, network.head(torch.zeros(2, 16, *ODD)), atol=1e-3)
    assert network.difference(values).abs().max() > 1e-3


def test_bits_order_of_dates_is_in_the_positions_alone():
    sample = Sample(4, SIZE)
    network, values = with_history(made("bit_cd", sample)), pixels(2, ODD, sample)
    logits, swapped = network(values).logits, network(values[:, [2, 3, 0, 1]]).logits
    assert not torch.allclose(logits, swapped, atol=1e-4)
    with torch.no_grad():
        network.positions.copy_(network.positions.roll(4, 0))
    assert torch.allclose(network(values[:, [2, 3, 0, 1]]).logits, logits, atol=1e-5)


def test_bits_tokens_are_means_of_pixels_weighed_by_attention_and_read_each_other():
    network, values = with_history(made("bit_cd")), pixels()
    seen, given = [], []
    network.narrowed.register_forward_hook(lambda _, __, out: seen.append(out))
    mixed = network.mixed
    network.mixed = lambda tokens: (given.append(tokens), mixed(tokens))[1]
    network(values)
    maps = seen[0]
    assert maps.shape == (6, 16, 4, 4)
    weights = torch.einsum("tc,bchw->bthw", network.attended.weight[:, :, 0, 0], maps).flatten(2).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    assert torch.allclose(given[0], torch.einsum("btp,bcp->btc", weights, maps.flatten(2)), atol=1e-5)
    # A token of the second date moves those of the first, of its own pair alone.
    other = given[0].clone()
    other[3, 0, 0] += 1  # of one number: a layer norm does not see what all have in common
    moved = (mixed(other) - mixed(given[0])).abs().amax((1, 2)) > 1e-6
    assert moved.tolist() == [True, False, False, True, False, False]


def test_change_former_compares_every_scale_and_its_maps_go_up_fourfold():
    network, values = with_history(made("change_former")), pixels(2, ODD)
    maps = network.differences(values)
    assert [tuple(x.shape) for x in maps] == [(2, 8, 10, 6), (2, 8, 5, 3), (2, 16, 3, 2), (2, 16, 2, 1)]
    dates = network.standardise(values).split(2, 1)
    first, second = (network.encoder(date, output_hidden_states=True).hidden_states for date in dates)
    for compare, found, a, b in zip(network.compared, maps, first, second, strict=True):
        assert torch.allclose(found, compare(torch.cat([a, b], 1)), atol=1e-5)
    up = lambda x: F.interpolate(x, (10, 6), mode="bilinear", align_corners=False)
    joined = network.joined(torch.cat([up(layer(x)) for layer, x in zip(network.projected, maps, strict=True)], 1))
    raised = network.raised(joined)
    assert raised.shape == (2, 16, 40, 24)
    assert torch.allclose(network(values).logits, network.head(raised[:, :, :37, :22]), atol=1e-5)
