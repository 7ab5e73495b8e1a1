"""Convolutional stages: maps and features, what an input's company changes, saving, other channels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tilth.backbones.conv_stages import ConvStages, ConvStagesConfig
from tilth.backbones.folder import load, save
from tilth.contracts import Sample, use
from tilth.errors import TilthError

SAMPLES = [Sample(2, (16,)), Sample(3, (16, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), Sample(1, (16, 16, 8), (0.3,), (0.2,))]


def encoder(sample, **settings):
    torch.manual_seed(0)
    return use("backbone", "conv_stages", **{"widths": [4, 6, 8], "strides": [1, 2, 2], **settings}).build().build(sample)


@pytest.mark.parametrize("sample", SAMPLES, ids=["1d", "2d", "3d"])
def test_features_of_any_number_of_axes(sample):
    model, values = encoder(sample), torch.rand(2, sample.channels, *sample.size)
    maps, features = model.maps(values), model(values, layers=(3, 1))
    assert [tuple(found.shape[1:]) for found in maps] == [
        (w, *(n // s for n in sample.size)) for w, s in ((4, 1), (6, 2), (8, 4))
    ]
    assert torch.equal(features.tokens, maps[2].flatten(2).mT) and torch.equal(features.layers[1], maps[0].flatten(2).mT)
    assert torch.equal(features.layers[0], features.tokens) and features.summary is None
    assert torch.allclose(features.pooled, torch.cat([found.flatten(2).mean(2) for found in maps], 1), atol=1e-6)
    assert features.pooled.shape[1] == model.config.hidden_size == 18
    last = encoder(sample, pooling="last")
    assert (
        torch.allclose(last(values).pooled, last.maps(values)[2].flatten(2).mean(2), atol=1e-6) and last.config.hidden_size == 8
    )


def test_a_block_is_a_residual_of_two_normed_convolutions():
    model = encoder(SAMPLES[2])
    block, x = model.stages[1][0], torch.rand(3, 4, 8, 8, 4)
    nn.init.normal_(block.first_norm.weight)
    nn.init.normal_(block.second_norm.bias)

    def normed(x, norm):
        return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)

    branch = F.relu(normed(F.conv3d(x, block.first.weight, stride=2, padding=1), block.first_norm))
    branch = normed(F.conv3d(branch, block.second.weight, padding=1), block.second_norm)
    assert torch.allclose(block(x), F.relu(F.conv3d(x, block.shortcut.weight, stride=2) + branch), atol=1e-5)
    assert isinstance(encoder(SAMPLES[2], blocks=2).stages[1][1].shortcut, nn.Identity)


@pytest.mark.parametrize("sample", SAMPLES, ids=["1d", "2d", "3d"])
def test_company_changes_nothing_training_or_not_and_inputs_are_standardised_inside(sample):
    model, values = encoder(sample).train(), torch.rand(3, sample.channels, *sample.size)
    alone = model(values[1:2]).pooled
    assert torch.allclose(alone[0], model(values).pooled[1], atol=1e-5)
    plain = encoder(Sample(sample.channels, sample.size))
    mean, std = (
        torch.tensor(part or [d] * sample.channels).reshape(-1, *[1] * len(sample.size))
        for part, d in ((sample.mean, 0.0), (sample.std, 1.0))
    )
    assert torch.allclose(plain((values - mean) / std).pooled, model(values).pooled, atol=1e-5)


@pytest.mark.parametrize("sample", SAMPLES, ids=["1d", "2d", "3d"])
def test_a_saved_encoder_is_the_same_encoder(sample, tmp_path):
    model, values = encoder(sample, pooling="last").eval(), torch.rand(2, sample.channels, *sample.size)
    save(model, None, tmp_path / "model", {"history": []})
    again = load(tmp_path / "model").model
    assert isinstance(again, ConvStages) and again.config.inputs == model.config.inputs
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(again(values).pooled, model(values).pooled)


def test_other_channels_leave_every_other_weight_bit_equal(tmp_path):
    model = encoder(SAMPLES[2])
    model.save_pretrained(tmp_path)
    config = ConvStagesConfig(3, SAMPLES[2].size, (0.1,) * 3, (0.2,) * 3, [4, 6, 8], 1, [1, 2, 2])
    other, report = ConvStages.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True)
    fresh = {name for name, *_ in report["mismatched_keys"]}
    assert fresh == {"stages.0.0.first.weight", "stages.0.0.shortcut.weight", "standardise.mean", "standardise.std"}
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name not in fresh)
    assert state["standardise.mean"].flatten().tolist() == pytest.approx([0.1] * 3) and state["stages.0.0.first.weight"].std() > 0
    assert other(torch.rand(2, 3, 8, 8, 8)).pooled.isfinite().all()


def test_what_does_not_fit_is_told():
    model = encoder(SAMPLES[2])
    with pytest.raises(TilthError, match="1 channels with 3 axes, not 2 with 3"):
        model(torch.rand(1, 2, 8, 8, 8))
    with pytest.raises(TilthError, match="single voxel"):
        model(torch.rand(2, 1, 4, 4, 4))
    with pytest.raises(TilthError, match="3 stages, no number 4"):
        model(torch.rand(2, 1, 8, 8, 8), layers=(4,))
    with pytest.raises(TilthError, match="one of each"):
        use("backbone", "conv_stages", widths=[4, 8], strides=[1]).build()
