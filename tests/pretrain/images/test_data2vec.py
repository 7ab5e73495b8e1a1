"""data2vec: targets computed by hand, hidden patches unseen, and the teacher's way."""

import pytest
import torch
from torch.nn import functional as F

from tilth.backbones.patches import Patches
from tilth.batches.patches.multi_block import block_wise
from tilth.batches.patches.patchify import patchify, unpatchify
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.data2vec import Data2Vec

TINY = {"layers": 2, "smallest_block": 4, "views": use("views", "none")}


def encoder(**settings):
    torch.manual_seed(0)
    sample = Sample(1, (16, 16), (0.5,), (0.25,))
    return Patches(**{"width": 32, "depth": 3, "heads": 2, "patch": 2, **settings}).build(sample)


def objective(model=None, **settings):
    torch.manual_seed(1)
    return Data2Vec(encoder() if model is None else model, **{**TINY, **settings})


def batch(count=4):
    torch.manual_seed(2)
    return Batch(pixel_values=torch.rand(count, 1, 16, 16), keys=torch.arange(count) * 7919)


def normalised(values):
    return (values - values.mean(-1, keepdim=True)) / (values.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("class_token", [False, True])
def test_targets_are_the_average_of_the_normalised_upper_layers(class_token):
    made, given = objective(encoder(class_token=class_token)), batch()
    network = made.teacher.network
    x = network.embedding(given.pixel_values)
    x = x(x.standardised(given.pixel_values))
    if class_token:
        x = torch.cat([network.class_token.expand(4, -1, -1), x], 1)
    first = network.blocks[0](x)
    second = network.blocks[1](first)
    third = network.blocks[2](second)
    expected = (normalised(second) + normalised(third)) / 2
    assert torch.allclose(made.targets(given.pixel_values), expected[:, class_token:], atol=1e-5)


def test_the_loss_is_smooth_l1_at_hidden_patches_alone():
    made, given = objective(beta=0.5), batch()
    mask = block_wise(given["keys"], (8, 8), 38, smallest=4)
    hidden = mask.where()
    assert hidden.sum(1).tolist() == [38] * 4
    tokens = made.model(given.pixel_values, hidden=hidden, fill=made.token).tokens
    error = (F.linear(tokens, made.head.weight, made.head.bias) - made.targets(given.pixel_values))[hidden].abs()
    expected = torch.where(error < 0.5, error.square() / 2 / 0.5, error - 0.25).mean()
    assert made(given).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_hidden_pixels_reach_the_targets_but_not_the_predictions():
    made, given = objective(), batch()
    mask = block_wise(given["keys"], (8, 8), 38, smallest=4)
    patches = patchify(given.pixel_values, (2, 2))
    changed = unpatchify(torch.where(mask.where()[:, :, None], torch.rand_like(patches), patches), (8, 8), (2, 2))
    before, after = (made.model(x, hidden=mask.where(), fill=made.token).tokens for x in (given.pixel_values, changed))
    assert torch.equal(before, after)
    assert (made.targets(given.pixel_values) - made.targets(changed)).abs().max() > 0.1
    made.targets = lambda pixels: torch.zeros(4, 64, 32)
    assert torch.equal(made(given).total, made(Batch(pixel_values=changed, keys=given["keys"])).total)


def test_the_teacher_has_no_gradient_and_follows_the_student():
    made, given = objective(momentum=0.9), batch()
    before = [value.clone() for value in made.teacher.parameters()]
    made(given).total.backward()
    assert all(value.grad is None for value in made.teacher.parameters())
    assert made.token.grad.abs().sum() > 0 and all(value.grad is not None for value in made.model.parameters())
    with torch.no_grad():
        for value in made.model.parameters():
            value += torch.randn_like(value)
    made.after_step(1)
    for old, new, own in zip(before, made.teacher.parameters(), made.model.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * own, atol=1e-6)


def test_more_layers_than_there_are_and_channels_embedded_apart_are_refused():
    with pytest.raises(TilthError, match="has 3 layers, not 4"):
        objective(layers=4)
    sample = Sample(2, (16, 16), (0.5, 0.5), (0.25, 0.25))
    with pytest.raises(TilthError, match="channels embedded together"):
        objective(Patches(width=32, depth=3, heads=2, patch=2, groups=[[0], [1]]).build(sample))
