"""UNet++: nodes against their definition, its relation to UNet, supervised columns, size."""

import pytest
import torch

from tests.backbones.segmenters import ODD, SAMPLE, made, pixels
from tilth.contracts import Sample, use
from tilth.registry import configure


def test_nested_skips_of_two_levels_are_a_unet():
    nested = made("unet_plus_plus", widths=[4, 8])
    plain = use("backbone", "unet", classes=3, widths=(4, 8)).build().build(SAMPLE)
    places = {"raised.0_1.": "expanding.up.0.", "nodes.0_1.": "expanding.joined.0.", "heads.0.": "head."}
    weights = {}
    for name, weight in nested.state_dict().items():
        start = next((start for start in places if name.startswith(start)), "")
        weights[places.get(start, "") + name[len(start) :]] = weight
    plain.load_state_dict(weights)
    assert torch.equal(nested(pixels(3, ODD)).logits, plain(pixels(3, ODD)).logits)


def test_a_node_reads_all_before_it_in_its_level_and_the_one_below():
    network, values = made("unet_plus_plus", widths=[4, 8, 16, 16]), pixels()
    assert set(network.nodes) == {"0_1", "1_1", "2_1", "0_2", "1_2", "0_3"}
    assert [network.nodes[f"0_{column}"][0].in_channels for column in (1, 2, 3)] == [8, 12, 16]
    x = network.contracting(network.standardise(values))
    node = lambda name, row, below: network.nodes[name](torch.cat([*row, network.raised[name](below)], 1))
    first = [node(f"{level}_1", [x[level]], x[level + 1]) for level in range(3)]
    second = [node(f"{level}_2", [x[level], first[level]], first[level + 1]) for level in range(2)]
    third = node("0_3", [x[0], first[0], second[0]], second[1])
    for found, expected in zip(network.columns(values), (first[0], second[0], third), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(network(values).logits, network.heads[0](third), atol=1e-6)


def test_supervised_columns_are_averaged_and_each_is_a_smaller_network():
    network, values = made("supervised", widths=[4, 8, 16, 16]), pixels()
    columns = network.columns(values)
    expected = sum(head(x) for head, x in zip(network.heads, columns, strict=True)) / 3
    assert len(columns) == 3 and torch.allclose(network(values).logits, expected, atol=1e-6)
    smaller = made("supervised", widths=[4, 8, 16])
    smaller.load_state_dict({name: value for name, value in network.state_dict().items() if name in smaller.state_dict()})
    assert all(torch.equal(a, b) for a, b in zip(smaller.columns(values), columns, strict=False))


def test_the_papers_network_has_as_many_parameters_as_it_says():
    with torch.device("meta"):
        network = configure("backbone", {"unet_plus_plus": {"classes": 1}}).build().build(Sample(3, (96, 96)))
    assert network.num_parameters() == pytest.approx(9.04e6, rel=0.002)
