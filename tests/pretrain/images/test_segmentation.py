"""Losses of every pixel: against torch's and the authors' forms, ignored pixels, nothing to learn from, half batches."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.floods import BATCHES, floods
from tilth.batches.images.segmentation import IGNORED
from tilth.context import Context
from tilth.contracts import Batch, Noise, use
from tilth.errors import TilthError
from tilth.pretrain.images.dense_losses import LOSSES
from tilth.pretrain.images.segmentation import Segmentation

WEIGHTS = torch.tensor([0.3716, 14.0098, 8.2041])
each_loss = pytest.mark.parametrize("name", LOSSES)


def given(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 3, 6, 5, generator=generator)
    target = torch.randint(0, 3, (count, 6, 5), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = IGNORED
    return logits, target


def lovasz_of_one(logits, target):
    """lovasz_softmax_flat of the authors' code, classes='present', of one picture's valid pixels."""
    shares, labels = logits.softmax(0).flatten(1).T, target.flatten()
    shares, labels = shares[labels != IGNORED], labels[labels != IGNORED]
    losses = []
    for label in range(3):
        foreground = (labels == label).float()
        if foreground.sum() == 0:
            continue
        errors, order = (foreground - shares[:, label]).abs().sort(0, descending=True)
        found = foreground[order]
        union = found.sum() + (1 - found).cumsum(0)
        jaccard = 1 - (found.sum() - found.cumsum(0)) / union
        jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
        losses.append(errors @ jaccard)
    return torch.stack(losses).mean()


def dice_of_one(logits, target):
    valid = target != IGNORED
    shares = logits.softmax(0)[:, valid]
    truth = F.one_hot(target[valid], 3).T.float()
    return torch.stack(
        [1 - 2 * (p * y).sum() / (p.sum() + y.sum()) for p, y in zip(shares, truth, strict=True) if y.sum()]
    ).mean()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_and_focal_are_torchs(weights):
    logits, target = given()
    expected = F.cross_entropy(logits, target, weights, ignore_index=IGNORED)
    assert LOSSES["cross_entropy"](logits, target, weights)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    shares = logits.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    valid = target != IGNORED
    weight = torch.ones(target.shape) if weights is None else weights[target.clamp(min=0)]
    focal = (-((1 - shares) ** 2) * shares.log() * weight)[valid].sum() / weight[valid].sum()
    assert LOSSES["focal"](logits, target, weights)[0].item() == pytest.approx(focal.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "one"), [("lovasz", lovasz_of_one), ("dice", dice_of_one)])
def test_losses_of_regions_are_their_authors(name, one):
    logits, target = given()
    target[1][target[1] == 2] = 0  # a class that this picture does not have
    logits.requires_grad_()
    total, count = LOSSES[name](logits, target, None)
    [found] = torch.autograd.grad(total, logits)
    expected = torch.stack([one(*pair) for pair in zip(logits, target, strict=True)]).mean()
    [gradient] = torch.autograd.grad(expected, logits)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5) and count == 4
    assert torch.allclose(found, gradient, atol=1e-7)


def test_the_sum_is_of_cross_entropy_and_dice_per_picture():
    logits, target = given()
    expected = [F.cross_entropy(a[None], b[None], WEIGHTS, ignore_index=IGNORED) for a, b in zip(logits, target, strict=True)]
    total, _ = LOSSES["cross_entropy_dice"](logits, target, WEIGHTS)
    dice, _ = LOSSES["dice"](logits, target, WEIGHTS)
    assert total.item() == pytest.approx((torch.stack(expected).mean() + dice).item(), rel=1e-5)


@each_loss
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ignored_pixels_change_nothing_and_have_no_gradient(name, weights):
    logits, target = given()
    other = torch.where((target == IGNORED)[:, None], torch.randn_like(logits) * 50, logits).requires_grad_()
    total, count = LOSSES[name](other, target, weights)
    before, same = LOSSES[name](logits, target, weights)
    assert torch.equal(total, before) and torch.equal(count, same)
    total.backward()
    gradient = other.grad.movedim(1, -1)
    assert not gradient[target == IGNORED].any() and gradient[target != IGNORED].any()


@each_loss
def test_where_nothing_counts_the_loss_is_nothing(name):
    logits, target = given()
    logits.requires_grad_()
    total, count = LOSSES[name](logits, torch.full_like(target, IGNORED), WEIGHTS)
    total.backward()
    assert total.item() == 0 and count.item() == 0 and not logits.grad.any()


@each_loss
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_parts_weighed_by_their_counts_are_the_whole(name, weights):
    logits, target = given(6)
    target[2] = IGNORED
    whole, count = LOSSES[name](logits, target, weights)
    parts = [LOSSES[name](logits[a:b], target[a:b], weights) for a, b in ((0, 1), (1, 3), (3, 6))]
    assert sum(n for _, n in parts).item() == pytest.approx(count.item())
    assert (sum(total * n for total, n in parts) / count).item() == pytest.approx(whole.item(), rel=1e-5)


@each_loss
def test_who_is_sure_and_right_loses_nothing(name):
    _, target = given()
    logits = 40.0 * F.one_hot(target.clamp(min=0), 3).movedim(-1, 1)
    assert LOSSES[name](logits, target, None)[0].item() < 1e-5 < 0.5 < LOSSES[name](-logits, target, None)[0].item()


def objective(folder, **settings):
    examples = BATCHES.build().build(floods(folder), None, Context(folder))
    torch.manual_seed(0)
    model = use("backbone", "unet", classes=3, widths=(4, 8)).build().build(examples.sample)
    return Segmentation(model, **settings), examples


def batch_of(examples, count=8):
    return examples.batch(np.arange(count), Noise(0, np.arange(count)))


def test_crops_are_for_training_alone_and_do_not_depend_on_company(tmp_path):
    made, examples = objective(tmp_path, crop=(0.3, 0.6), flip=0.5, loss="cross_entropy_dice")
    plain, _ = objective(tmp_path, loss="cross_entropy_dice")
    whole = batch_of(examples)
    assert made(whole).total != plain(whole).total
    assert torch.equal(made.eval()(whole).total, plain.eval()(whole).total)
    made.train()
    halves = [Batch(**{name: value[part] for name, value in whole.items()}) for part in (slice(0, 3), slice(3, 8))]
    losses = [made(half) for half in halves]
    mean = sum(loss.total * loss.count for loss in losses) / sum(loss.count for loss in losses)
    assert mean.item() == pytest.approx(made(whole).total.item(), rel=1e-5)


def test_a_batch_without_a_valid_pixel_moves_nothing(tmp_path):
    made, examples = objective(tmp_path, weights=WEIGHTS.tolist(), crop=(0.3, 0.6))
    whole = batch_of(examples)
    loss = made(Batch(**{**whole, "mask": torch.full_like(whole.mask, IGNORED)}))
    loss.total.backward()
    assert loss.total.item() == 0 and all(not parameter.grad.any() for parameter in made.parameters())


def test_the_head_alone_can_be_trained(tmp_path):
    examples = BATCHES.build().build(floods(tmp_path), None, Context(tmp_path))
    encoder = use("backbone", "patches", width=24, depth=1, heads=2, patch=4)
    model = use("backbone", "dense_classifier", classes=3, encoder=encoder).build().build(examples.sample)
    made = Segmentation(model, train="head")
    made(batch_of(examples)).total.backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_pictures_show_the_classes(tmp_path):
    made, examples = objective(tmp_path)
    rows = made.eval().pictures(batch_of(examples, 3))
    assert len(rows) == 3 and all(
        part.shape == (3, 16, 16) and part.min() >= 0 and part.max() <= 1 for row in rows for part in row
    )
    mask = batch_of(examples, 3).mask
    assert torch.equal(rows[0][1].sum(0) == 0, mask[0] == IGNORED)


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(TilthError, match="2 weights for 3 classes"):
        objective(tmp_path, weights=[1.0, 2.0])
    with pytest.raises(TilthError, match="no encoder to freeze"):
        objective(tmp_path, train="head")
