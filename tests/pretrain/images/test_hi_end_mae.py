"""Hi-End-MAE: what the decoder asks of which layer, and MAE as the decoder without its questions."""

from dataclasses import replace

import pytest
import torch

from tilth.backbones.patches import Patches
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.patches.masks import pick
from tilth.batches.patches.patchify import patchify, unpatchify
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.decoder import MaskedDecoder
from tilth.pretrain.images.hi_end_mae import HiEndMAE

VOLUME, PICTURE = Sample(1, (16, 16, 16), (0.4,), (0.3,)), Sample(3, (16, 16), (0.4,) * 3, (0.3,) * 3)
NONE = use("views", "none")


def objective(sample=VOLUME, class_token=True, taps=(2, 3, 4), depth=5, **settings):
    torch.manual_seed(0)
    model = Patches(width=24, depth=depth, heads=2, patch=4, class_token=class_token).build(sample)
    given = {"taps": list(taps), "decoder_width": 24, "decoder_heads": 2, "views": NONE, **settings}
    return HiEndMAE(model, **given).eval()


def batch(sample=VOLUME, count=4):
    torch.manual_seed(1)
    return Batch(pixel_values=torch.rand(count, sample.channels, *sample.size), keys=torch.arange(count) * 3 + 1)


def parts(made, given):
    """What the decoder is given: features, mask, positions."""
    pixels = given.pixel_values
    grid = [extent // 4 for extent in pixels.shape[2:]]
    mask = made.mask(given["keys"], torch.tensor(grid).prod().item())
    return made.model(pixels, kept=mask.kept, layers=made.taps), mask, sincos(coordinates(grid), 24)[None]


def test_counts_of_the_paper():
    mask = objective().mask(torch.arange(3), (96 // 12) ** 3)
    assert mask.tokens == 512 and mask.kept.shape == (3, 128) and mask.hidden.shape == (3, 384)
    assert torch.equal(torch.cat([mask.kept, mask.hidden], 1).sort(1).values, torch.arange(512).expand(3, -1))
    tokens = torch.randn(3, 512, 5)
    together = torch.cat([pick(tokens, mask.kept), pick(tokens, mask.hidden)], 1)
    assert torch.equal(pick(together, torch.cat([mask.kept, mask.hidden], 1).argsort(1)), tokens)
    ramp = torch.arange(24 * 36 * 48, dtype=torch.float32).reshape(1, 1, 24, 36, 48)
    cut = patchify(ramp, (12, 12, 12))
    assert cut.shape == (1, 24, 1728) and torch.equal(unpatchify(cut, (2, 3, 4), (12, 12, 12)), ramp)


@pytest.mark.parametrize("sample", [VOLUME, PICTURE])
def test_the_encoder_sees_no_hidden_voxel_and_no_target_a_seen_one(sample):
    made, given = objective(sample), batch(sample)
    pixels = given.pixel_values.requires_grad_()
    grid, patch = tuple(extent // 4 for extent in sample.size), (4,) * len(sample.size)
    features, mask, _ = parts(made, given)
    seen = torch.autograd.grad(features.tokens.square().sum() + sum(layer.square().sum() for layer in features.layers), pixels)[0]
    reached = patchify(seen, patch).abs().sum(-1)
    assert not reached.gather(1, mask.hidden).any() and reached.gather(1, mask.kept).all()
    # With predictions that do not depend on the input, what is left is the target.
    made.decoder.forward = lambda features, mask, positions: torch.ones(4, mask.hidden.shape[1], made.decoder.head.out_features)
    gradient = patchify(torch.autograd.grad(made(given).total, pixels)[0], patch).abs().sum(-1)
    assert not gradient.gather(1, mask.kept).any() and gradient.gather(1, mask.hidden).all()
    assert torch.equal(unpatchify(patchify(pixels, patch), grid, patch), pixels)


@pytest.mark.parametrize("class_token", [False, True])
def test_without_its_questions_the_decoder_is_that_of_mae(class_token):
    made, given = objective(class_token=class_token), batch()
    features, mask, positions = parts(made, given)
    for block in made.decoder.driven:
        for layer in (block.cross.kv, block.cross.out):
            torch.nn.init.zeros_(layer.weight)
    plain = MaskedDecoder(24, 64, width=24, depth=5, heads=2)
    state = {name: value for name, value in made.decoder.state_dict().items() if "tap_proj" not in name and "cross" not in name}
    for number in range(3):
        for ours, theirs in (("norm", "mixer_norm"), ("attention", "mixer"), ("mlp_norm", "mlp_norm"), ("mlp", "mlp")):
            start = f"driven.{number}.{ours}."
            for name in [name for name in state if name.startswith(start)]:
                state[f"blocks.{2 + number}.{theirs}." + name.removeprefix(start)] = state.pop(name)
    plain.load_state_dict(state)
    if class_token:  # MAE's decoder is not given one: run its blocks on all tokens
        x = torch.cat([plain.project(features.summary)[:, None], plain.begin(features.tokens, mask, positions)], 1)
        for block in plain.blocks:
            x = block(x)
        expected = plain.end(x, mask)
    else:
        expected = plain(features.tokens, mask, positions)
    torch.testing.assert_close(made.decoder(features, mask, positions), expected, rtol=0, atol=1e-6)


def test_the_loss_reaches_the_tapped_blocks_directly_and_those_above_through_the_top():
    made, given = objective(), batch()

    def learning(features, mask, positions):
        made.zero_grad()
        made.decoder(features, mask, positions).square().mean().backward()
        return [any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in made.model.blocks]

    features, mask, positions = parts(made, given)
    cut = replace(features, tokens=features.tokens.detach(), summary=features.summary.detach())
    assert learning(cut, mask, positions) == [True, True, True, True, False]
    features, mask, positions = parts(made, given)
    for kept in range(3):  # each tap by itself
        layers = tuple(layer if at == kept else layer.detach() for at, layer in enumerate(cut.layers))
        features, mask, positions = parts(made, given)
        layers = tuple(layer if at == kept else layer.detach() for at, layer in enumerate(features.layers))
        alone = replace(features, tokens=features.tokens.detach(), summary=features.summary.detach(), layers=layers)
        assert learning(alone, mask, positions) == [number <= made.taps[kept] for number in range(1, 6)]
    features, mask, positions = parts(made, given)
    assert all(learning(replace(features, layers=tuple(layer.detach() for layer in features.layers)), mask, positions))


def test_taps_are_outputs_of_blocks_as_they_are_and_their_order_matters():
    made, given = objective(), batch()
    features, mask, positions = parts(made, given)
    assert [layer.shape[1] for layer in features.layers] == [1 + mask.kept.shape[1]] * 3
    blocks = []
    for block in made.model.blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    features, mask, positions = parts(made, given)
    assert all(torch.equal(layer, blocks[tap - 1]) for layer, tap in zip(features.layers, (2, 3, 4), strict=True))
    asked = []
    for block in made.decoder.driven:
        block.register_forward_hook(lambda module, inputs, output: asked.append(inputs[1]))
    whole = made.decoder(features, mask, positions)
    for tap, projection, layer in zip(asked[::-1], made.decoder.tap_projections, features.layers, strict=True):
        assert torch.equal(tap, projection(layer))
    exchanged = replace(features, layers=features.layers[::-1])
    assert not torch.allclose(made.decoder(exchanged, mask, positions), whole, atol=1e-4)


def test_a_constant_patch_has_the_target_zero_in_half_precision_too():
    made = objective()
    made.decoder.forward = lambda features, mask, positions: torch.zeros(2, mask.hidden.shape[1], 64)
    constant = torch.full((2, 1, 16, 16, 16), 0.7)
    for pixels in (constant, constant.half()):
        assert made(Batch(pixel_values=pixels, keys=torch.arange(2))).total.item() < 1e-6


def test_a_perfect_prediction_is_the_patch_with_mean_0_and_variance_1():
    made, given = objective(), batch()
    mask = made.mask(given["keys"], 64)
    hidden = pick(patchify((given.pixel_values - 0.4) / 0.3, (4, 4, 4)), mask.hidden)
    target = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    made.decoder.forward = lambda features, mask, positions: target
    assert made(given).total.item() < 1e-10
    made.decoder.forward = lambda features, mask, positions: target + 0.5
    assert made(given).total.item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize(("sample", "class_token"), [(VOLUME, True), (VOLUME, False), (PICTURE, True)])
def test_every_weight_learns_and_batches_do_not_depend_on_their_company(sample, class_token):
    made = objective(sample, class_token, taps=(5, 1)).train()
    whole = batch(sample)
    loss = made(whole)
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in made.parameters()) and loss.count == 4
    halves = [Batch(pixel_values=whole.pixel_values[i : i + 2], keys=whole["keys"][i : i + 2]) for i in (0, 2)]
    assert loss.total.item() == pytest.approx(sum(made(half).total.item() for half in halves) / 2, rel=1e-5)


def test_what_cannot_be_is_told():
    for taps in ([], [2, 2], [3, 6]):
        with pytest.raises(TilthError, match="has no taps"):
            objective(taps=taps)
    with pytest.raises(TilthError, match="multiple of 6"):
        objective(decoder_width=20)(batch())
