"""The patch encoder: what it sees, subsets, positions, saving, and transformers' ViT as an independent witness."""

import pytest
import torch

from tilth.backbones.folder import load, save
from tilth.backbones.patches import Patches
from tilth.backbones.positions import coordinates, interpolated, sincos
from tilth.contracts import Sample
from tilth.errors import TilthError

SMALL = {"width": 24, "depth": 2, "heads": 2}


def encoder(*samples: Sample, **settings):
    torch.manual_seed(0)
    made = Patches(**{**SMALL, "patch": 4, **settings}).build(samples if len(samples) > 1 else samples[0])
    return made.eval()


PICTURE, VOLUME, SIGNAL = Sample(3, (16, 16)), Sample(1, (8, 8, 4)), Sample(2, (32,))


@pytest.mark.parametrize(("sample", "tokens"), [(PICTURE, 16), (VOLUME, 4), (SIGNAL, 8)])
@pytest.mark.parametrize("position", ["sincos", "learned", "none"])
@pytest.mark.parametrize("class_token", [False, True])
def test_signals_pictures_and_volumes(sample, tokens, position, class_token):
    model = encoder(sample, position=position, class_token=class_token)
    values = torch.randn(3, sample.channels, *sample.size)
    features = model(values, layers=(1, 2))
    assert features.tokens.shape == (3, tokens, 24) and features.pooled.shape == (3, 24)
    assert [layer.shape[1] for layer in features.layers] == [tokens + class_token] * 2
    assert (features.summary is not None) == class_token
    features.pooled.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_hidden_patches_are_not_seen_and_seen_ones_keep_their_places():
    model = encoder(PICTURE)
    values, kept = torch.randn(2, 3, 16, 16), torch.tensor([[0, 5, 9], [2, 3, 15]])
    features = model(values, kept=kept)
    assert features.tokens.shape[1] == 3
    changed = values.clone()
    changed[0, :, 0:4, 4:8] += 1  # patch 1, hidden in both
    assert torch.equal(model(changed, kept=kept).tokens, features.tokens)
    changed[0, :, 4:8, 4:8] += 1  # patch 5, seen in the first
    again = model(changed, kept=kept).tokens
    assert not torch.equal(again[0], features.tokens[0]) and torch.equal(again[1], features.tokens[1])
    everything = torch.arange(16).expand(2, -1)
    assert torch.allclose(model(values, kept=everything).tokens, model(values).tokens, atol=1e-6)
    assert not torch.allclose(model(values, kept=everything.flip(1)).tokens, model(values).tokens, atol=1e-3)


def test_filled_patches_lose_their_content_but_not_their_place():
    model, fill = encoder(PICTURE), torch.randn(24)
    values, hidden = torch.randn(1, 3, 16, 16), torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 1] = True
    other = values.clone()
    other[0, :, 0:4, 4:8] = 9.0
    assert torch.equal(model(values, hidden=hidden, fill=fill).tokens, model(other, hidden=hidden, fill=fill).tokens)
    assert not torch.equal(model(values, hidden=hidden, fill=fill).tokens, model(values).tokens)


def test_two_kinds_of_input_share_the_blocks_alone():
    model = encoder(PICTURE, VOLUME)
    model(torch.randn(2, 3, 16, 16)).tokens.sum().backward()
    assert all(p.grad is None for p in model.embeddings["3d"].parameters())
    assert all(p.grad is not None for p in model.blocks.parameters())
    assert model(torch.randn(2, 1, 8, 8, 4)).tokens.shape == (2, 4, 24)
    with pytest.raises(TilthError, match="not 1d"):
        model(torch.randn(2, 3, 16))
    with pytest.raises(TilthError, match="reads 3 channels, not 4"):
        model(torch.randn(2, 4, 16, 16))


def test_groups_of_channels_are_tokens_of_their_own():
    bands = Sample(10, (16, 16))
    groups = [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]]
    model = encoder(bands, groups=groups, width=32)
    embedding = model.embeddings["2d"]
    assert model(torch.randn(2, 10, 16, 16)).tokens.shape == (2, 48, 32)
    table = embedding.positions((4, 4))[0].reshape(3, 16, 32)
    assert torch.equal(table[0, :, :24], table[1, :, :24])  # the place does not depend on the group
    assert torch.equal(table[:, :1, 24:].expand(-1, 16, -1), table[:, :, 24:])  # nor the group's name on the place
    assert len(torch.unique(table.reshape(48, 32), dim=0)) == 48


def test_one_group_may_leave_channels_out():
    model = encoder(PICTURE, groups=[[2, 0]])
    values = torch.randn(2, 3, 16, 16)
    other = values.clone()
    other[:, 1] += 1
    assert torch.equal(model(values).tokens, model(other).tokens)
    other[:, 2] += 1
    assert not torch.equal(model(values).tokens, model(other).tokens)


def test_sine_cosine_tables():
    table = sincos(coordinates((2, 3, 4)), 24)
    assert table.shape == (24, 24) and len(torch.unique(table, dim=0)) == 24
    volume = table.reshape(2, 3, 4, 24)
    assert torch.equal(volume[1, 0, 0, :8], volume[1, 2, 3, :8])  # one axis, one third
    assert torch.allclose(sincos(torch.tensor([[0.0]]), 4), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    with pytest.raises(TilthError, match="multiple of 6"):
        sincos(coordinates((2, 2, 2)), 20)


def test_another_grid_stretches_positions_to_the_trained_one():
    at = coordinates((8, 8), (4, 4))
    assert at.min() == -0.25 and at.max() == 3.25
    assert torch.equal(coordinates((4, 4), (4, 4)), coordinates((4, 4)))
    ramp = coordinates((6,)).T[None].transpose(1, 2)  # a table that is its own coordinate
    assert torch.allclose(interpolated(ramp, (6,), (3,)).flatten(), coordinates((3,), (6,)).flatten())
    for position in ("sincos", "learned"):
        assert encoder(PICTURE, position=position)(torch.randn(1, 3, 32, 24)).tokens.shape == (1, 48, 24)


def test_a_ground_distance_scales_the_coordinates():
    embedding = encoder(PICTURE).embeddings["2d"]
    near, far = embedding.positions((4, 4), torch.tensor([1.0, 2.0]))
    assert torch.equal(near, embedding.positions((4, 4))[0])
    assert torch.allclose(far.reshape(4, 4, 24)[1, 1], near.reshape(4, 4, 24)[2, 2], atol=1e-6)


def test_inputs_are_standardised_inside():
    sample = Sample(3, (16, 16), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    model, plain = encoder(sample), encoder(PICTURE)
    values = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (sample.mean, sample.std))
    assert torch.allclose(model(values).tokens, plain((values - mean) / std).tokens, atol=1e-5)


def test_an_encoder_is_saved_and_loaded_like_any_model(tmp_path):
    model = encoder(Sample(3, (16, 16), (0.5,) * 3, (0.25,) * 3), position="learned", class_token=True, pooling="class")
    save(model, None, tmp_path / "model", {"history": []})
    again = load(tmp_path / "model")
    values = torch.rand(2, 3, 16, 16)
    assert again.tokenizer is None and torch.equal(again.model(values).pooled, model(values).pooled)


def test_a_patch_that_does_not_divide_is_told_before_anything_is_built():
    with pytest.raises(TilthError, match="do not divide"):
        encoder(PICTURE, patch=5)
