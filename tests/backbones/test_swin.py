"""Swin V2: the card's exact checks, transformers' class as a witness, other resolutions, saving."""

import math

import pytest
import torch
from transformers import Swinv2Config, Swinv2Model

from tilth.backbones.classifier import FreshPictureClassifier, with_head
from tilth.backbones.folder import load, save
from tilth.backbones.swin import SwinEncoder, SwinV2, resized
from tilth.backbones.swin_bias import LinearAttention, TableAttention, WindowAttention
from tilth.backbones.swin_block import SwinBlock
from tilth.contracts import Sample, use
from tilth.errors import TilthError

SMALL = {"width": 16, "depths": [2, 2], "heads": [2, 4], "window": 4, "patch": 2, "drop_path": 0.0}
PICTURE = Sample(3, (32, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def encoder(sample: Sample = PICTURE, *, random: bool = False, **settings) -> SwinEncoder:
    """random: every weight drawn anew, so that no branch is silent."""
    torch.manual_seed(0)
    model = SwinV2(**{**SMALL, **settings}).build(sample).eval()
    if random:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "logit_scale" not in name:
                    parameter.add_(torch.randn(parameter.shape) * (0.5 if "layernorm" in name else 0.1))
    return model


def attention(window, trained=None, kind=WindowAttention, heads=2, width=8):
    torch.manual_seed(0)
    config = Swinv2Config()
    config.block = "v2"
    made = kind(config, width, heads, (window, window), (trained, trained) if trained else None)
    if kind is TableAttention:
        torch.nn.init.normal_(made.relative_position_bias_table)
    return made


def blocks(model) -> list[SwinBlock]:
    return [module for module in model.modules() if isinstance(module, SwinBlock)]


def test_every_block_starts_as_the_identity_and_its_gains_have_gradients():
    model, x = encoder(), torch.randn(2, 256, 16)
    for block in blocks(model)[:2]:
        assert torch.equal(block(x, (16, 16))[0], x)
    model(torch.rand(2, 3, 32, 32)).pooled[:, 0].sum().backward()
    for block in blocks(model):
        assert block.layernorm_before.weight.grad.abs().sum() > 0 and block.layernorm_after.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("made", ["classifier", "saved", "resized"])
def test_no_later_initialiser_takes_the_identity_away(made, tmp_path):
    model = encoder()
    if made == "classifier":
        classifier = FreshPictureClassifier(classes=3, encoder=use("backbone", "swin_v2", **SMALL)).build(PICTURE)
        save(classifier, None, tmp_path / "model")
        model = load(tmp_path / "model").model
    elif made == "saved":
        save(model, None, tmp_path / "model")
        model = load(tmp_path / "model").model
    else:
        model = resized(model, 64, 8)
    assert len(blocks(model)) == 4
    for block in blocks(model):
        for norm in (block.layernorm_before, block.layernorm_after):
            assert not norm.weight.any() and not norm.bias.any()


@pytest.mark.parametrize(
    ("window", "trained", "offset", "expected"),
    [(8, 8, 1, 0.3665), (8, 8, 3, 0.7156), (8, 8, 7, 1.0566), (16, 8, 15, 1.3938), (16, None, 1, 0.2056)],
)
def test_log_spaced_coordinates(window, trained, offset, expected):
    table = attention(window, trained).relative_coords_table[0]
    middle = window - 1
    assert table[middle + offset, middle].tolist() == pytest.approx([expected, 0.0], abs=1e-4)
    assert table[middle, middle - offset].tolist() == pytest.approx([0.0, -expected], abs=1e-4)
    assert torch.equal(table, -table.flip(0, 1))
    far = attention(window, trained, LinearAttention).relative_coords_table[0]
    assert far[middle + offset, middle, 0].item() == pytest.approx(offset / ((trained or window) - 1))


@pytest.mark.parametrize("trained", [None, 1])
def test_a_window_of_one_token_has_finite_coordinates(trained):
    assert attention(1, trained).bias().isfinite().all() and attention(2, 1).bias().isfinite().all()


@pytest.mark.parametrize("kind", [WindowAttention, LinearAttention])
def test_the_bias_of_known_offsets_is_the_same_in_a_larger_window(kind):
    small, large = attention(4, kind=kind), attention(8, 4, kind)
    large.load_state_dict(small.state_dict())
    spread = large.bias().reshape(2, 8, 8, 8, 8)
    for corner in ((0, 0), (3, 4)):
        rows, columns = (slice(at, at + 4) for at in corner)
        assert torch.equal(spread[:, rows, columns, rows, columns].reshape(2, 16, 16), small.bias())


def test_the_bias_is_that_of_the_offset_from_key_to_query():
    made = attention(4)
    outputs = made.continuous_position_bias_mlp(made.relative_coords_table)
    by_hand = 16 / (1 + (-outputs).exp())
    bias = made.bias()
    assert bias[1, 2 * 4 + 3, 0 * 4 + 1].item() == pytest.approx(by_hand[0, 3 + 2, 3 + 2, 1].item())  # (2, 3) - (0, 1)
    assert bias.min() > 0 and bias.max() < 16


def weights(made, x, excluded=None):
    return made(x, excluded, True)[1]


def test_cosine_attention_does_not_mind_the_length_of_queries_and_theta_is_clamped():
    made, x = attention(4), torch.randn(3, 16, 8)
    before = weights(made, x)
    with torch.no_grad():
        made.query.weight.mul_(1000), made.query.bias.mul_(1000)
        assert torch.allclose(weights(made, x), before, atol=1e-5)
        made.logit_scale.fill_(10.0)
    hot = weights(made, x)
    hot.square().sum().backward()
    assert not made.logit_scale.grad.any()
    with torch.no_grad():
        made.logit_scale.fill_(math.log(100))
        assert torch.equal(weights(made, x), hot)
        q = torch.randn(3, 2, 16, 4) * 50
        assert made.logits(q, q).abs().max() == pytest.approx(100, rel=1e-5)
        made.logit_scale.fill_(math.log(10))
    made.logit_scale.grad = None
    weights(made, x).square().sum().backward()
    assert (made.logit_scale.grad != 0).all()


def test_keys_have_no_bias():
    made = attention(4)
    expected = 3 * 8 * 8 + 2 * 8 + 2 + (2 * 512 + 512 + 512 * 2)  # q, k, v; biases of q and v; theta; the MLP
    assert sum(p.numel() for p in made.parameters()) == expected and made.key.bias is None


@pytest.mark.parametrize("sides", [(8, 8), (4, 8), (8, 12)])
def test_windows_go_there_and_back(sides):
    block = blocks(encoder())[1]
    x = torch.randn(2, *sides, 16)
    windows = block.split(x)
    assert torch.equal(block.join(windows, sides), x)
    assert torch.equal(windows[1].reshape(4, 4, 16), x[0, :4, 4:8])


@pytest.mark.parametrize("sides", [(8, 8), (4, 8), (8, 12)])
@pytest.mark.parametrize("number", [0, 1])
def test_windows_are_global_attention_with_everything_else_left_out(sides, number):
    """Brute force: tokens see each other when they share a window of the (shifted) tiling, which does not wrap around."""
    block = blocks(encoder(random=True))[number]
    attend = block.attention.self
    x = torch.randn(2, sides[0] * sides[1], 16)
    shift = [2 if number and side > 4 else 0 for side in sides]
    rows, columns = (grid.flatten() for grid in torch.meshgrid(*map(torch.arange, sides), indexing="ij"))
    window = torch.stack([(rows - shift[0]).div(4, rounding_mode="floor"), (columns - shift[1]).div(4, rounding_mode="floor")])
    together = (window[:, :, None] == window[:, None, :]).all(0)
    offset = torch.stack([rows[:, None] - rows, columns[:, None] - columns]).clamp(-3, 3) + 3
    table = 16 * attend.continuous_position_bias_mlp(attend.relative_coords_table)[0].sigmoid()
    bias = table[offset[0], offset[1]].permute(2, 0, 1)
    q, k, v = (part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in (attend.query, attend.key, attend.value))
    q, k = (part / part.norm(dim=-1, keepdim=True) for part in (q, k))
    logits = (q @ k.transpose(-2, -1) * attend.logit_scale.exp() + bias).masked_fill(~together, -math.inf)
    expected = block.attention.output.dense((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(block.mixed(x, sides), expected, atol=1e-5)
    if number and sides == (8, 8):
        excluded = block.excluded(sides, x.device)
        found = weights(attend, block.split(x.unflatten(1, sides).roll((-2, -2), (1, 2))), excluded)
        assert excluded.any() and found.transpose(0, 1)[:, excluded.repeat(2, 1, 1)].max() < 1e-40


def test_a_map_no_larger_than_the_window_is_one_window_that_is_not_shifted():
    model = encoder(window=16)
    assert [block.window for block in blocks(model)] == [(16, 16)] * 2 + [(8, 8)] * 2
    assert all(block.shift(sides) == (0, 0) for block, sides in zip(blocks(model), [(16, 16)] * 2 + [(8, 8)] * 2))
    shifts = [block.shift((16, 16)) for block in blocks(encoder())]
    assert shifts == [(0, 0), (2, 2)] * 2 and blocks(encoder())[1].shift((4, 8)) == (0, 2)


@pytest.mark.parametrize(("window", "trained"), [(4, [0, 0]), (8, [4, 4]), (16, [16, 6])])
def test_equal_weights_give_what_transformers_gives(window, trained):
    model = encoder(Sample(3, (32, 32)), random=True, window=window, pretrained_windows=trained)
    theirs = Swinv2Model(
        Swinv2Config(
            image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=window,
            pretrained_window_sizes=trained, drop_path_rate=0.0,
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    values = torch.randn(2, 3, 32, 32)
    ours = model(values, layers=(1, 2))
    other = theirs(values)
    assert torch.allclose(ours.tokens, other.last_hidden_state, atol=1e-4) and ours.layers[0].shape == (2, 256, 16)
    assert torch.allclose(ours.pooled, other.pooler_output, atol=1e-4)


def test_another_resolution_copies_every_weight_and_keeps_the_windows_the_bias_was_trained_in():
    model = encoder(random=True, window=16)  # maps of 16 and 8: the last stage's own window is 8
    large = resized(model, 64, 32)
    assert large.config.pretrained_window_sizes == [[16, 16], [8, 8]] and [b.window for b in blocks(large)][2] == (16, 16)
    assert all(torch.equal(value, large.state_dict()[name]) for name, value in model.state_dict().items())
    again = resized(large, 32, 16)
    assert again.config.pretrained_window_sizes == [[16, 16], [8, 8]]
    values = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(values).tokens, model(values).tokens)
    assert large(torch.rand(1, 3, 64, 64)).tokens.shape == (1, 256, 32)


def test_a_table_is_interpolated_and_the_same_window_leaves_it_alone():
    model = encoder(position="table")
    assert torch.equal(
        resized(model, 64, 4).encoder.layers[0].blocks[0].attention.self.relative_position_bias_table,
        model.encoder.layers[0].blocks[0].attention.self.relative_position_bias_table,
    )
    old, new = (m.encoder.layers[0].blocks[1].attention.self for m in (model, resized(model, 64, 8)))
    with torch.no_grad():
        ramp = torch.arange(7.0)[:, None].expand(7, 7).reshape(49, 1).expand(49, 2)
        old.relative_position_bias_table.copy_(ramp)
    stretched = old.stretched((8, 8)).reshape(15, 15, 2)
    assert new.relative_position_bias_table.shape == (225, 2)
    assert torch.allclose(stretched[7], torch.full((15, 2), 3.0), atol=1e-5) and (stretched.diff(dim=0) > 0).all()


def test_non_square_maps_have_windows_of_their_own_for_each_axis():
    model = encoder(Sample(1, (16, 64)), random=True, window=8)
    assert [block.window for block in blocks(model)] == [(8, 8)] * 2 + [(4, 8)] * 2
    assert model(torch.rand(2, 1, 16, 64)).tokens.shape == (2, 64, 32)
    large = resized(model, (32, 128), 16)
    assert large.config.pretrained_window_sizes == [[8, 8], [4, 8]] and large(torch.rand(1, 1, 32, 128)).tokens.shape[1] == 256


def test_hidden_patches_are_replaced_after_their_embedding_and_not_seen():
    model, fill = encoder(random=True), torch.randn(16)
    values, hidden = torch.rand(2, 3, 32, 32), torch.zeros(2, 256, dtype=torch.bool)
    hidden[:, 17] = True  # rows 2, 3 and columns 2, 3
    other = values.clone()
    other[:, :, 2:4, 2:4] = 9.0
    assert torch.equal(model(values, hidden=hidden, fill=fill).tokens, model(other, hidden=hidden, fill=fill).tokens)
    assert not torch.equal(model(values).tokens, model(other).tokens)


def test_inputs_are_standardised_inside():
    values = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (PICTURE.mean, PICTURE.std))
    model, plain = encoder(random=True), encoder(Sample(3, (32, 32)), random=True)
    assert torch.equal(model(values).tokens, plain((values - mean) / std).tokens)


@pytest.mark.parametrize("settings", [{}, {"position": "table"}, {"position": "linear"}, {"block": "v1"}])
def test_it_is_saved_and_loaded_like_any_model(settings, tmp_path):
    model, values = encoder(random=True, **settings), torch.rand(2, 3, 32, 32)
    save(model, None, tmp_path / "model")
    again = load(tmp_path / "model").model
    assert torch.equal(again(values).tokens, model(values).tokens) and again.config.inputs == model.config.inputs
    large = resized(model, 64, 8)
    save(large, None, tmp_path / "large")
    assert torch.equal(load(tmp_path / "large").model(values.repeat(1, 1, 2, 2)).tokens, large(values.repeat(1, 1, 2, 2)).tokens)


def test_a_classifier_takes_a_trained_encoder_as_it_is(tmp_path):
    model, values = encoder(random=True), torch.rand(2, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classifier = with_head(model, 5).eval()
    assert all(torch.equal(value, before[name]) for name, value in classifier.encoder.state_dict().items())
    logits = classifier(values).logits
    assert logits.shape == (2, 5) and torch.equal(logits, classifier.head(model(values).pooled))
    save(classifier, None, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").model(values).logits, logits)
    loaded = with_head(load(tmp_path / "model").model.encoder, 5)
    assert all(torch.equal(value, before[name]) for name, value in loaded.encoder.state_dict().items())


def test_v1_blocks_have_norms_before_branches_and_dot_products():
    block = blocks(encoder(random=True, block="v1", window=16))[0]
    x = torch.randn(1, 256, 16)
    attend = block.attention.self
    y = block.layernorm_before(x)
    q, k, v = (part(y).unflatten(-1, (2, 8)).transpose(1, 2) for part in (attend.query, attend.key, attend.value))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attend.bias()[None]).transpose(1, 2).flatten(2)
    x2 = x + block.attention.output.dense(mixed)
    expected = x2 + block.output.dense(torch.nn.functional.gelu(block.intermediate.dense(block.layernorm_after(x2))))
    assert torch.allclose(block(x, (16, 16))[0], expected, atol=1e-5)


def test_logits_are_float32_under_autocast():
    made, x = attention(4), torch.randn(3, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, found = made(x, None, True)
        q, k = (part(x).unflatten(-1, (2, 4)).transpose(1, 2).float() for part in (made.query, made.key))
    expected = (made.logits(q, k) + made.bias()).softmax(-1)
    assert mixed.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_what_is_not_decayed():
    names = set(attention(4).undecayed)
    assert {"logit_scale", "continuous_position_bias_mlp.0.weight", "continuous_position_bias_mlp.2.weight"} <= names
    assert "query.weight" not in names
    assert "relative_position_bias_table" in attention(4, kind=TableAttention).undecayed


def test_what_cannot_be_is_told():
    with pytest.raises(TilthError, match="do not tile"):
        encoder(window=3)
    with pytest.raises(TilthError, match="do not tile"):
        resized(encoder(), 48, 9)
    with pytest.raises(TilthError, match="do not divide"):
        encoder(Sample(3, (30, 30)))
    with pytest.raises(TilthError, match="do not tile"):
        encoder()(torch.rand(1, 3, 40, 40))
    with pytest.raises(TilthError, match="reads 3 channels, not 1"):
        encoder()(torch.rand(1, 1, 32, 32))
    with pytest.raises(TilthError, match="3 stages"):
        SwinV2(depths=[2, 2, 2], heads=[2, 4])
