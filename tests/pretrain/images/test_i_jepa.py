"""I-JEPA: what the student sees, what it is asked for, and what the teacher says."""

import pytest
import torch
from torch.nn import functional as F

from tilth.backbones.patches import Patches
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.patches.masks import pick
from tilth.batches.patches.multi_block import MultiBlock, multi_block
from tilth.batches.patches.patchify import patchify, unpatchify
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.i_jepa import IJEPA
from tilth.pretrain.images.predictor import Predictor

GRID = (14, 14)
TINY = {"predictor_width": 16, "predictor_depth": 2, "predictor_heads": 2, "views": use("views", "none")}


def encoder(**settings):
    torch.manual_seed(0)
    sample = Sample(1, (28, 28), (0.5,), (0.25,))
    return Patches(**{"width": 32, "depth": 2, "heads": 2, "patch": 2, **settings}).build(sample)


def objective(model=None, **settings):
    torch.manual_seed(1)
    return IJEPA(encoder() if model is None else model, **{**TINY, **settings})


def batch(count=4):
    torch.manual_seed(2)
    return Batch(pixel_values=torch.rand(count, 1, 28, 28), keys=torch.arange(count) * 7919)


def blocks_of(given):
    return multi_block(given["keys"], GRID)


def test_the_student_never_sees_target_patches_and_the_teacher_does():
    made, given = objective(), batch()
    blocks = blocks_of(given)
    patches = patchify(given.pixel_values, (2, 2))
    targets = torch.zeros(4, 196, dtype=torch.bool).scatter(1, blocks.targets.flatten(1), blocks.valid.flatten(1))
    changed = unpatchify(torch.where(targets[:, :, None], torch.rand_like(patches), patches), GRID, (2, 2))
    before, after = (made.predicted(pixels, blocks, GRID) for pixels in (given.pixel_values, changed))
    assert torch.equal(before, after)
    assert (made.wanted(given.pixel_values, blocks) - made.wanted(changed, blocks)).abs().max() > 0.1
    # The context does matter.
    seen = torch.zeros(4, 196, dtype=torch.bool).scatter(1, blocks.context, True)
    changed = unpatchify(torch.where(seen[:, :, None], torch.rand_like(patches), patches), GRID, (2, 2))
    assert (before - made.predicted(changed, blocks, GRID)).abs().max() > 1e-3


def test_targets_are_normalised_teacher_tokens_in_the_order_of_examples_and_blocks():
    made, given = objective(), batch()
    blocks = blocks_of(given)
    tokens = made.teacher.network(given.pixel_values).tokens
    wanted = made.wanted(given.pixel_values, blocks)
    for example in range(4):
        for target in range(4):
            own = tokens[example, blocks.targets[example, target]]
            expected = (own - own.mean(1, keepdim=True)) / (own.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            assert torch.allclose(wanted[4 * example + target], expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
def test_the_loss_is_that_of_each_block_alone_over_its_own_patches(loss):
    made, given = objective(loss=loss), batch()
    blocks = blocks_of(given)
    assert not blocks.valid.all()
    total, count = 0.0, 0
    for example in range(4):
        pixels = given.pixel_values[example : example + 1]
        seen = made.model(pixels, kept=blocks.context[example : example + 1]).tokens
        positions = sincos(coordinates(GRID), 16)[None]
        for target in range(4):
            numbers = blocks.targets[example, target][blocks.valid[example, target]][None]
            found = made.predictor(seen, pick(positions, blocks.context[example : example + 1]), pick(positions, numbers))
            teacher = made.teacher(pixels).tokens
            error = found - pick(F.layer_norm(teacher, (32,)), numbers)
            each = error.square() if loss == "l2" else torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5)
            total, count = total + each.mean(-1).sum().item(), count + numbers.shape[1]
    got = made(given)
    assert got.total.item() == pytest.approx(total / count, rel=1e-5) and int(got.count) == count


def test_blocks_of_equal_size_need_no_padding_and_give_the_same_loss():
    model = encoder(patch=7, position="sincos")  # a grid of 4 x 4: every target is 1 x 3 or 3 x 1
    made, given = objective(model), batch()
    blocks = multi_block(given["keys"], (4, 4))
    assert blocks.valid is None
    padded = MultiBlock(blocks.context, blocks.targets, torch.ones_like(blocks.targets, dtype=torch.bool))
    found = [made.predicted(given.pixel_values, which, (4, 4)) for which in (blocks, padded)]
    assert torch.allclose(*found, atol=1e-6) and made(given).count == 4 * 4 * 3


def test_queries_are_told_apart_by_their_positions_alone():
    torch.manual_seed(0)
    predictor = Predictor(8, width=16, depth=2, heads=2)
    seen, places, queries = torch.randn(2, 5, 8), torch.randn(2, 5, 16), torch.randn(2, 6, 16)
    found = predictor(seen, places, queries)
    order = torch.randperm(6)
    assert torch.allclose(predictor(seen, places, queries[:, order]), found[:, order], atol=1e-6)
    shuffled = torch.randperm(5)
    assert torch.allclose(predictor(seen[:, shuffled], places[:, shuffled], queries), found, atol=1e-6)
    same = predictor(seen, places, queries[:, :1].expand(-1, 2, -1))
    assert torch.allclose(same[:, 0], same[:, 1], atol=1e-6) and (found[:, 0] - found[:, 1]).abs().max() > 1e-3
    # Queries that do not count change nothing for those that do.
    valid = torch.tensor([[True, True, True, True, False, False]] * 2)
    assert torch.allclose(predictor(seen, places, queries, valid)[:, :4], predictor(seen, places, queries[:, :4]), atol=1e-6)


def test_the_teacher_has_no_gradient_and_follows_the_student():
    made, given = objective(momentum=0.9), batch()
    before = [value.clone() for value in made.teacher.parameters()]
    made(given).total.backward()
    assert all(value.grad is None for value in made.teacher.parameters())
    assert all(value.grad is not None for value in [*made.model.parameters(), *made.predictor.parameters()])
    with torch.no_grad():
        for value in made.model.parameters():
            value += torch.randn_like(value)
    made.after_step(1)
    for old, new, own in zip(before, made.teacher.parameters(), made.model.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * own, atol=1e-6)


def test_its_momentum_rises_over_its_steps():
    made = objective(momentum=0.5, momentum_steps=10)
    with torch.no_grad():
        for value in made.model.parameters():
            value += 1
    before = [value.clone() for value in made.teacher.parameters()]
    made.after_step(10)
    assert all(torch.equal(*pair) for pair in zip(before, made.teacher.parameters(), strict=True))


def test_channels_embedded_apart_are_refused():
    sample = Sample(2, (28, 28), (0.5, 0.5), (0.25, 0.25))
    with pytest.raises(TilthError, match="channels embedded together"):
        IJEPA(Patches(width=32, depth=1, heads=2, patch=2, groups=[[0], [1]]).build(sample), **TINY)
