"""BlackBench's further networks for pixels: sizes, folders, exact pieces against what they are made of, and that they learn."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel, UperNetForSemanticSegmentation

from tests.floods import BATCHES, floods
from tilth.backbones.deeplab_v3_plus import AtrousPyramid
from tilth.backbones.dilated_resnet import DilatedResNet
from tilth.backbones.folder import load, save
from tilth.backbones.two_dates import two_dates
from tilth.context import Context
from tilth.contracts import Noise, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.segmentation import Segmentation
from tilth.registry import configure
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training

SIZE, ODD = (16, 16), (37, 22)
SAMPLE = Sample(4, SIZE, (0.5, 1.0, 2.0, 3.0), (0.5, 2.0, 1.0, 4.0))
RESNET = {"stem": 8, "depths": [1, 1, 1], "hidden_sizes": [8, 8, 16]}
UPERNET = {"depths": [1, 1, 1], "hidden_sizes": [8, 16, 16], "width": 16, "pools": [1, 2]}
FORMER = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "heads": [1, 1, 2, 2], "reductions": [2, 1, 1, 1], "width": 16}
NETWORKS = {
    "unet_plus_plus": {"unet_plus_plus": {"widths": [4, 8, 8]}},
    "supervised": {"unet_plus_plus": {"widths": [4, 8, 8], "deep_supervision": True}},
    "deeplab": {"deeplab_v3_plus": {**RESNET, "output_stride": 8, "rates": [1, 2], "width": 16, "low": 8}},
    "upernet": {"upernet": UPERNET},
    "upernet_resnet": {"upernet": {**UPERNET, "encoder": "resnet"}},
    "bit_cd": {"bit_cd": {**RESNET, "width": 16, "heads": 2, "decoder_depth": 2}},
    "change_former": {"change_former": FORMER},
}
TRANSFORMERS = ("upernet", "upernet_resnet")


def configured(name, **more):
    [(method, settings)] = NETWORKS[name].items()
    return configure("backbone", {method: {"classes": 3, **settings, **more}})


def made(name, sample=SAMPLE, **more):
    torch.manual_seed(0)
    return configured(name, **more).build().build(sample)


def pixels(count=3, size=SIZE, sample=SAMPLE):
    values = torch.randn(count, sample.channels, *size, generator=torch.Generator().manual_seed(1))
    mean, std = sample.mean or [0.0] * sample.channels, sample.std or [1.0] * sample.channels
    return values * torch.tensor(std).reshape(-1, 1, 1) + torch.tensor(mean).reshape(-1, 1, 1)


def with_history(network):
    """Batch norms as after some training: of a fresh one, mean 0 and variance 1 hide what they do."""
    generator = torch.Generator().manual_seed(2)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(0.3 * torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_has_logits_of_its_own_and_examples_stay_apart(name):
    network = with_history(made(name))
    for size in (SIZE, ODD):
        values = pixels(3, size)
        logits = network(pixel_values=values).logits
        assert logits.shape == (3, 3, *size) and logits.std() > 0
        assert torch.allclose(network(values[1:2]).logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_gives_the_same(name, tmp_path):
    network, values = with_history(made(name)), pixels()
    save(network, None, tmp_path / "model", {"history": []})
    again = load(tmp_path / "model")
    assert again.tokenizer is None and again.model.config.num_labels == 3
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in network.state_dict().items())
    # Weights that are read from a file lie at odd addresses, where vectorised kernels round otherwise.
    for part in (*again.model.parameters(), *again.model.buffers()):
        part.data = part.data.clone()
    assert torch.equal(again.model(values).logits, network(values).logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_are_standardised_inside(name):
    network, plain = with_history(made(name)), made(name, Sample(4, SIZE)).eval()
    plain.load_state_dict({**network.state_dict(), "standardise.mean": torch.zeros(4), "standardise.std": torch.ones(4)})
    standard = (pixels() - torch.tensor(SAMPLE.mean).reshape(-1, 1, 1)) / torch.tensor(SAMPLE.std).reshape(-1, 1, 1)
    assert torch.allclose(network(pixels()).logits, plain(standard).logits, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_a_gradient(name):
    network = made(name)
    network(pixels(4, (64, 64))).logits.square().mean().backward()
    # A softmax does not see what all keys have in common, nor a difference what both dates have.
    blind = ("k_proj.bias", "decoding.1.mlp.down.bias")
    named = {name: weight.grad for name, weight in network.named_parameters() if not name.endswith(blind)}
    assert not [name for name, gradient in named.items() if gradient is None or not gradient.any()]


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_of_floods_are_learnt(name, tmp_path):
    examples = (
        use("batches", "segmentation", **{**BATCHES.settings, "keep": [0, 2]})
        .build()
        .build(floods(tmp_path), None, Context(tmp_path))
    )
    objective = Segmentation(made(name, examples.sample))
    batch = examples.batch(np.arange(16), Noise(0, np.arange(16)))
    optimiser = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        losses.append(objective(batch).total)
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stage_pretrain_trains_and_keeps_it(name, tmp_path):
    context = Context(tmp_path / "stage", corpora={"floods": floods(tmp_path / "floods")})
    context.folder.mkdir()
    stage = Pretrain(
        data="floods", budget=Budget(steps=2), objective=use("pretrain", "segmentation", crop=(0.5, 1.0), flip=0.5),
        batches=use("batches", "segmentation", **{**BATCHES.settings, "keep": [0, 2]}), backbone=configured(name),
        training=Training(lr=1e-3, batch_size=4, compile=False),
    )  # fmt: skip
    assert np.isfinite(stage.run(context)["loss"])
    kept = load(context.folder / "model").model
    # Two dates of radar, standardised with the constants of the batches.
    assert kept.config.num_channels == 4 and kept.config.mean == pytest.approx([0.0953, 0.0264] * 2)
    assert kept(torch.rand(2, 4, *SIZE)).logits.shape == (2, 3, *SIZE)


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


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_upernet_is_that_of_transformers(name):
    network, values = with_history(made(name)), pixels(2, ODD)
    theirs = UperNetForSemanticSegmentation(network.config.transformers()).eval()
    theirs.load_state_dict({k.removeprefix("network."): v for k, v in network.state_dict().items() if k.startswith("network.")})
    standard = (values - torch.tensor(SAMPLE.mean).reshape(-1, 1, 1)) / torch.tensor(SAMPLE.std).reshape(-1, 1, 1)
    assert torch.equal(network(values).logits, theirs(standard).logits)
    assert theirs.backbone.config.model_type == ("convnext" if name == "upernet" else "resnet")
    assert [stage.layers[-1] is not None for stage in theirs.backbone.encoder.stages] == [True] * 3


def test_upernets_default_is_convnexts_tiny_form():
    config = configure("backbone", {"upernet": {"classes": 3}}).build()
    assert (config.depths, config.hidden_sizes, config.width) == ((3, 3, 9, 3), (96, 192, 384, 768), 512)


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


def test_what_cannot_be_is_told():
    volume, odd, small = Sample(4, (16, 16, 8)), Sample(5, SIZE), Sample(4, (8, 8))
    for name in NETWORKS:
        with pytest.raises(TilthError, match="reads pictures"):
            made(name, volume)
    for name in ("bit_cd", "change_former"):
        with pytest.raises(TilthError, match="not two dates"):
            made(name, odd)
    for name, settings in (
        ("deeplab", {}),
        ("upernet", {}),
        ("bit_cd", {}),
        ("change_former", {"reductions": [4, 1, 1, 1]}),
        ("unet_plus_plus", {"widths": [4] * 5}),
    ):
        with pytest.raises(TilthError, match="too small"):
            made(name, small, **settings)
    with pytest.raises(TilthError, match="16x16 are too small, of 29 needed"):
        made("change_former", reductions=[8, 4, 2, 1])
    for name in ("deeplab", "upernet", "bit_cd", "change_former"):
        with pytest.raises(TilthError, match="each stage needs a number in every list"):
            made(name, depths=[1, 1])
    with pytest.raises(TilthError, match="two levels or more"):
        made("unet_plus_plus", widths=[4])
    for name, settings in (("bit_cd", {"heads": 3}), ("change_former", {"heads": [1, 3, 2, 2]})):
        with pytest.raises(TilthError, match="heads cannot share"):
            made(name, **settings)
    for name in ("upernet", "change_former"):
        with pytest.raises(TilthError, match="too small"):
            made(name).eval()(pixels(2, (15, 4)))
    network = made("upernet")
    with pytest.raises(TilthError, match="one picture a step"):
        network(pixels(1))
    assert network.eval()(pixels(1)).logits.shape == (1, 3, *SIZE)
