"""Networks that name every pixel: shapes, exact pieces, examples apart, saved and loaded."""

import pytest
import torch

from tilth.backbones.dense import with_dense_head
from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import Sample, use
from tilth.errors import TilthError
from tilth.registry import configure
from tilth.stages.dense_classifier import DenseClassifierOf

SIZE, VOLUME = (16, 16), (16, 16, 8)
SAMPLE = Sample(4, SIZE, (0.5, 1.0, 2.0, 3.0), (0.5, 2.0, 1.0, 4.0))
TINY = {"width": 24, "depth": 3, "heads": 2, "patch": 4}
SWIN = {"width": 16, "depths": [1, 1], "heads": [2, 2], "window": 2, "patch": 4}
NETWORKS = {
    "unet": {"unet": {"classes": 3, "widths": [8, 16, 32]}},
    "diff": {"fc_siam": {"classes": 3, "widths": [8, 16, 32]}},
    "conc": {"fc_siam": {"classes": 3, "widths": [8, 16, 32], "comparison": "conc"}},
    "snunet": {"snunet": {"classes": 3, "width": 4}},
    "conv_lstm": {"conv_lstm": {"classes": 3, "dates": 2, "width": 8, "depth": 2}},
    "linear": {"dense_classifier": {"classes": 3, "encoder": {"patches": TINY}}},
    "mlp": {"dense_classifier": {"classes": 3, "encoder": {"patches": {**TINY, "class_token": True}}, "head": "mlp"}},
    "transposed": {"dense_classifier": {"classes": 3, "encoder": {"patches": {**TINY, "patch": 16}}, "head": "transposed"}},
    "unetr": {
        "dense_classifier": {"classes": 3, "encoder": {"patches": {**TINY, "class_token": True}}, "head": "unetr", "taps": [1]}
    },
    "groups": {"dense_classifier": {"classes": 3, "encoder": {"patches": {**TINY, "width": 32, "groups": [[0, 1], [2, 3]]}}}},
    "swin": {"dense_classifier": {"classes": 3, "encoder": {"swin_v2": SWIN}, "head": "mlp"}},
    "conv_stages": {"dense_classifier": {"classes": 3, "encoder": {"conv_stages": {"widths": [8, 16], "strides": [2, 2]}}}},
    "mamba": {
        "dense_classifier": {
            "classes": 3,
            "encoder": {"patches": {"width": 24, "depth": 2, "heads": 2, "patch": 8, "mixer": "mamba", "class_token": True}},
            "head": "unetr",
            "taps": [1, 2],
        }
    },
}


def made(name, sample=SAMPLE):
    torch.manual_seed(0)
    return configure("backbone", NETWORKS[name]).build().build(sample)


def pixels(count=3, sample=SAMPLE):
    values = torch.randn(count, sample.channels, *sample.size, generator=torch.Generator().manual_seed(1))
    wide = (-1, *[1] * len(sample.size))
    return values * torch.tensor(sample.std).reshape(wide) + torch.tensor(sample.mean).reshape(wide)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pixel_has_logits_examples_stay_apart_weights_learn_and_a_folder_gives_the_same(name, tmp_path):
    network, values = made(name), pixels()
    logits = network(pixel_values=values).logits
    assert logits.shape == (3, 3, *SIZE)
    assert torch.allclose(network(values[1:2]).logits[0], logits[1], atol=1e-5)
    logits.square().sum().backward()
    unused = [n for n, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused, unused
    save(network, None, tmp_path / "model", {"history": []})
    again = load(tmp_path / "model")
    network.eval()
    assert again.tokenizer is None and torch.equal(again.model(values).logits, network(values).logits)
    assert again.model.config.num_labels == 3


@pytest.mark.parametrize("name", ["unet", "diff", "conc", "snunet", "conv_lstm"])
def test_inputs_are_standardised_inside_and_odd_sizes_keep_theirs(name):
    network = made(name)
    plain = made(name, Sample(4, SIZE))
    plain.load_state_dict({**network.state_dict(), "standardise.mean": torch.zeros(4), "standardise.std": torch.ones(4)})
    values = pixels()
    standard = (values - torch.tensor(SAMPLE.mean).reshape(-1, 1, 1)) / torch.tensor(SAMPLE.std).reshape(-1, 1, 1)
    assert torch.allclose(network(values).logits, plain(standard).logits, atol=1e-5)
    assert network(pixels(2, Sample(4, (19, 23), SAMPLE.mean, SAMPLE.std))).logits.shape == (2, 3, 19, 23)


def test_equal_dates_have_no_skip_features_and_the_order_of_dates_matters_only_where_it_should():
    network = (
        configure("backbone", {"fc_siam": {"classes": 3, "widths": [8, 16, 32], "shared": 1}}).build().build(Sample(5, SIZE))
    )
    date, terrain = torch.randn(2, 2, 16, 16), torch.randn(2, 1, 16, 16)
    first, second = network.dates(torch.cat([date, date, terrain], 1))
    assert first.shape == (2, 3, 16, 16) and torch.equal(first, second) and torch.equal(first[:, 2:], terrain)
    skips = network.skips(network.contracting(first)[:-1], network.contracting(second)[:-1])
    assert len(skips) == 2 and all(not skip.any() for skip in skips)
    other = torch.randn(2, 2, 16, 16)
    first, second = network.dates(torch.cat([date, other, terrain], 1))
    there, back = (
        network.skips(network.contracting(a)[:-1], network.contracting(b)[:-1]) for a, b in ((first, second), (second, first))
    )
    assert all(torch.equal(a, b) and a.any() for a, b in zip(there, back, strict=True))


def test_the_lattice_reads_both_dates_above_and_the_second_alone_at_the_bottom():
    network = made("snunet")
    assert [network.nodes[f"0_{j}"].first.in_channels for j in range(1, 5)] == [2 * 4 + 8, 3 * 4 + 8, 4 * 4 + 8, 5 * 4 + 8]
    outputs = network.outputs(pixels())
    assert len(outputs) == 4 and all(output.shape == (3, 4, *SIZE) for output in outputs)
    seen = []
    handle = network.down[4].register_forward_hook(lambda *_: seen.append(1))
    network(pixels())
    handle.remove()
    assert len(seen) == 1
    # CA(cat) * (cat + repeat_4(CA1(sum)))
    together, inside = torch.cat(outputs, 1), network.within(sum(outputs)).repeat(1, 4, 1, 1)
    expected = network.head(network.ensemble(together) * (together + inside))
    assert torch.allclose(network(pixels()).logits, expected, atol=1e-5)


def test_the_recurrent_network_is_a_loop_of_lstm_cells():
    """With 1-pixel kernels, every pixel is an LSTM of its own: torch's."""
    network = configure("backbone", {"conv_lstm": {"classes": 3, "dates": 2, "width": 8}}).build().build(Sample(4, (3, 3)))
    gates, lstm = network.cells[0].gates, torch.nn.LSTM(2, 8, batch_first=True)
    with torch.no_grad():
        middle = gates.weight[:, :, 1, 1].clone()
        gates.weight.zero_()[:, :, 1, 1] = middle
        i, f, o, g = middle.chunk(4)
        weights, biases = torch.cat([i, f, g, o]), torch.cat([part for k in (0, 1, 3, 2) for part in [gates.bias.chunk(4)[k]]])
        lstm.weight_ih_l0.copy_(weights[:, :2])
        lstm.weight_hh_l0.copy_(weights[:, 2:])
        lstm.bias_ih_l0.copy_(biases)
        lstm.bias_hh_l0.zero_()
    values = torch.randn(2, 4, 3, 3)
    hidden = lstm(values.reshape(2, 2, 2, 9).permute(0, 3, 1, 2).reshape(18, 2, 2))[0][:, -1]
    expected = network.head(hidden.reshape(2, 3, 3, 8).permute(0, 3, 1, 2))
    assert torch.allclose(network(values).logits, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "channels"), [("diff", 2), ("unet", 3)])
def test_what_the_networks_do_is_not_what_a_single_pixel_says(name, channels):
    """A change far away moves the logits: the coarse levels are joined."""
    network = made(name).eval()
    values = pixels(1)
    other = values.clone()
    other[:, :, 15, 15] += 5
    assert (network(values).logits[0, :, 0, 0] - network(other).logits[0, :, 0, 0]).abs().max() > 1e-6


def test_the_linear_head_is_interpolation_of_a_linear_map_of_tokens():
    network, values = made("linear").eval(), pixels()
    tokens = network.encoder(values).tokens.transpose(1, 2).reshape(3, 24, 4, 4)
    whole = torch.nn.functional.interpolate(tokens, SIZE, mode="bilinear", align_corners=False)
    assert torch.allclose(network(values).logits, network.head.classes(whole), atol=1e-5)


def test_volumes_and_signals_have_heads_too():
    for sample, head, taps in (
        (Sample(1, VOLUME), "unetr", (2,)),
        (Sample(1, VOLUME), "linear", ()),
        (Sample(2, (32,)), "unetr", (1,)),
        (Sample(2, (32,)), "transposed", ()),
    ):
        encoder = use("backbone", "patches", **TINY).build().build(sample)
        network = with_dense_head(encoder, 5, head, taps)
        assert network(torch.randn(2, sample.channels, *sample.size)).logits.shape == (2, 5, *sample.size)


def test_unetr_reads_every_tap_the_last_layer_and_the_input():
    network, values = made("unetr").eval(), pixels()
    maps = [torch.randn(3, 24, 4, 4, requires_grad=True) for _ in range(2)]
    given = values.clone().requires_grad_()
    network.head(maps, given).square().sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in (*maps, given))


def test_an_encoder_goes_in_as_it_is_and_the_head_is_the_seeds(tmp_path):
    encoder = use("backbone", "patches", **TINY).build().build(SAMPLE)
    inputs = {"encoder": save(encoder, None, tmp_path / "encoder", {"history": [1]})}

    def headed(seed, name):
        metrics = DenseClassifierOf(model="encoder", classes=3, head="unetr", taps=(2,)).run(
            Context(tmp_path / name, seed, inputs)
        )
        found = load(tmp_path / name / "model")
        assert metrics == {"parameters": found.model.num_parameters()} and found.about == {"history": [1]}
        return found.model

    first, again, other = headed(0, "a"), headed(0, "b"), headed(1, "c")
    for network in (first, again, other):
        assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in network.encoder.state_dict().items())
    weights = [network.head.classes.weight for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_what_cannot_be_is_told():
    for name, sample, message in (
        ("unet", Sample(4, VOLUME), "reads pictures"),
        ("snunet", Sample(4, (8, 8)), "too small for 5 levels"),
        ("diff", Sample(3, SIZE), "not two dates"),
        ("snunet", Sample(3, SIZE), "not two dates"),
        ("conv_lstm", Sample(3, SIZE), "not 2 dates"),
    ):
        with pytest.raises(TilthError, match=message):
            made(name, sample)
    encoder = use("backbone", "patches", **TINY).build().build(SAMPLE)
    with pytest.raises(TilthError, match="reads 1 early layers and 'taps' names 2"):
        with_dense_head(encoder, 3, "unetr", (1, 2))
    with pytest.raises(TilthError, match="reads 0 early layers"):
        with_dense_head(encoder, 3, "linear", (1,))
    odd = use("backbone", "patches", **{**TINY, "patch": [4, 2]}).build().build(SAMPLE)
    with pytest.raises(TilthError, match="one power of 2"):
        with_dense_head(odd, 3, "unetr", (1,))
    both = use("backbone", "patches", **TINY).build().build([SAMPLE, Sample(1, VOLUME)])
    with pytest.raises(TilthError, match="several kinds"):
        with_dense_head(both, 3, "linear")
