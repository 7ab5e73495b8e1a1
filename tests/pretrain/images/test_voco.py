"""VoCo: the card's exact checks, the authors' loops as a witness, and what belongs to which volume."""

from math import log

import pytest
import torch
from torch.nn import functional as F

from tilth.backbones.patches import Patches
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.voco import VoCo, cosines, embedding, following, position_loss, regularisation
from tilth.training.optimisers import AdamW

SCAN, PICTURE = Sample(1, (12, 12, 4), (0.5,), (0.3,)), Sample(3, (12, 12), (0.5,) * 3, (0.3,) * 3)
NONE = use("views", "none")


def encoder(sample=SCAN, **settings):
    torch.manual_seed(0)
    return use("backbone", "conv_stages", **{"widths": [6, 8], "strides": [1, 2], **settings}).build().build(sample)


def voco(model=None, **settings):
    return VoCo(model or encoder(), **{"crop": 4, "head_width": 16, "head_out": 8, **settings})


def volumes(count=4, sample=SCAN, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, sample.channels, *sample.size, generator=generator)
    return Batch(tokens=count, samples=count, pixel_values=pixels, keys=torch.arange(count) * 5 + 2)


def one_hot(*at):
    return F.one_hot(torch.tensor(at), 9).float()[None]


def test_the_loss_of_the_card():
    y = one_hot(4)
    assert position_loss(y, y).abs().item() <= 4e-6 and position_loss(y, y) < 0
    assert position_loss(0 * y, y).item() == pytest.approx(-log(1e-6), abs=1e-3)
    assert position_loss(torch.ones_like(y), y).item() == pytest.approx(13.8155, abs=1e-3)
    assert position_loss((y + one_hot(7)).clamp(max=1), y).item() == pytest.approx(13.8155 / 8, abs=1e-3)


def test_logits_are_pushed_towards_a_soft_label_from_both_sides():
    y = torch.full((1, 1, 9), 0.25)
    for given, sign in ((0.1, -1), (0.6, 1)):
        logits = torch.full_like(y, given).requires_grad_()
        position_loss(logits, y).sum().backward()
        assert (logits.grad.sign() == sign).all()


def test_a_soft_label_of_exactly_nothing_is_a_negative_and_any_other_none():
    logits = torch.full((1, 1, 9), 0.5).requires_grad_()
    y = torch.tensor([0.0, 1e-7] + [0.5] * 7).reshape(1, 1, 9)
    position_loss(logits, y).sum().backward()
    assert logits.grad[0, 0, 0] > 1 and logits.grad[0, 0, 1].abs() < 1e-5


def test_the_regulariser_is_nothing_for_different_and_one_for_equal_bases_with_a_gradient_to_the_first_of_a_pair():
    assert regularisation(torch.eye(9)[None]).item() == 0
    assert regularisation(-torch.ones(1, 2, 5) * torch.tensor([1.0, -1.0])[None, :, None]).item() == 0  # opposite
    assert regularisation(torch.ones(1, 9, 5)).item() == pytest.approx(1, rel=1e-6)
    pair = torch.rand(1, 2, 5).requires_grad_()
    regularisation(pair).sum().backward()
    assert pair.grad[0, 0].abs().sum() > 1e-3 and not pair.grad[0, 1].any()


def test_logits_lie_between_nothing_and_one_and_do_not_know_lengths():
    crops, bases = torch.randn(2, 3, 8), torch.randn(2, 9, 8)
    logits = cosines(crops, bases).relu()
    assert logits.min() == 0 and logits.max() <= 1
    assert torch.allclose(cosines(7 * crops, 0.1 * bases).relu(), logits, atol=1e-6)


def authors_loss(student, teacher, labels, bases=9):
    """Volume by volume, pair by pair, as Self-supervised/models/voco_head.py goes (Luffy03/Large-Scale-Medical)."""

    def assign(feats, known):
        return torch.stack([F.relu(F.cosine_similarity(feat[None], known, dim=1)) for feat in feats])

    def cross_entropy(y, p):
        positive = -y * torch.log(1 - (y - p).abs() + 1e-6)
        negative = -(y == 0).long() * torch.log(1 - p + 1e-6)
        return positive.sum() / (y.sum() + 1e-6) + negative.sum() / ((y == 0).sum() + 1e-6)

    total = 0.0
    for i in range(len(labels)):
        j = (i + 1) % len(labels)
        own, after = student[i], student[j]
        total += cross_entropy(labels[i], assign(own[bases:], teacher[i, :bases]))
        total += cross_entropy(assign(teacher[i, bases:], teacher[j, :bases]).detach(), assign(own[bases:], after[:bases]))
        pairs = [(k, m) for k in range(bases) for m in range(k + 1, bases)]
        total += sum(F.relu(F.cosine_similarity(own[k], own[m].detach(), dim=0)) ** 2 for k, m in pairs) / len(pairs)
    return total / len(labels)


@pytest.mark.parametrize("trained", [False, True])
def test_the_loss_and_its_gradient_are_the_authors(trained):
    objective, batch = voco(dropout=0).train(trained), volumes()
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    loss = objective(batch)
    found = objective.answers(batch.pixel_values, batch["keys"])
    expected = authors_loss(found.student, found.teacher, found.labels)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5) and loss.count == 4
    assert sum(loss.parts[name] for name in ("intra", "inter", "regulariser")).item() == pytest.approx(
        loss.total.item(), rel=1e-5
    )
    weights = list(objective.head.parameters()) + list(objective.model.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(value, weights) for value in (loss.total, expected)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_head_is_the_authors():
    objective, rows = voco(), torch.randn(20, 14)
    x = rows
    for layer in (0, 3):
        x = objective.head[layer](x)
        x = F.relu((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
    assert torch.allclose(objective.head(rows), objective.head[6](x), atol=1e-5)
    assert torch.allclose(objective.eval().head(rows), objective.head[6](x), atol=1e-5)  # no memory: the same
    assert [name for name, _ in objective.head.named_buffers()] == []


def test_the_teacher_has_no_gradient_and_no_optimiser_state_and_moves_a_tenth_of_the_way():
    objective = voco()
    assert all(map(torch.equal, objective.teacher.parameters(), objective.head.parameters()))
    optimiser = AdamW(objective, 0.1)
    objective(volumes()).total.backward()
    optimiser.step()
    before = [parameter.clone() for parameter in objective.teacher.parameters()]
    objective.after_step(1)
    for mine, old, student in zip(objective.teacher.parameters(), before, objective.head.parameters(), strict=True):
        assert torch.allclose(mine, old + 0.1 * (student - old), atol=1e-7) and mine.grad is None
    assert any((old != student).any() for old, student in zip(before, objective.head.parameters(), strict=True))
    held = {id(parameter) for parameter in optimiser.state}
    assert not held & {id(parameter) for parameter in objective.teacher.parameters()}
    assert {id(p) for p in [*objective.head.parameters(), *objective.model.parameters()]} <= held


def test_crops_belong_to_their_volume():
    pixels = torch.arange(5.0).reshape(5, 1, 1, 1, 1).expand(5, 1, 12, 12, 4)
    seen = []

    class Watched(torch.nn.Module):
        config = encoder().config

        def forward(self, crops, layers=()):
            seen.append(crops)
            return type("Features", (), {"pooled": crops.flatten(1)[:, :3]})

    objective = voco(Watched(), views=NONE)
    objective.answers(pixels, torch.arange(5))
    assert seen[-1].shape == (55, 1, 4, 4, 4)
    assert torch.equal(seen[-1].unflatten(0, (5, 11)), pixels[:, None, :, :4, :4].expand(5, 11, 1, 4, 4, 4))


def test_the_next_volume_of_the_last_is_the_first_and_a_volume_alone_has_none():
    bases = torch.rand(3, 9, 4)
    assert torch.equal(following(bases, True), bases[[1, 2, 0]])
    loss = voco()(volumes(1))
    assert loss.parts["inter"] == 0 and loss.total.isfinite() and loss.parts["intra"] > 0


def test_dropout_is_of_the_students_numbers_and_hangs_on_keys_alone():
    objective, rows, keys = voco(dropout=0.25), torch.ones(400, 14), torch.arange(400)
    dropped = objective.dropped(rows, keys)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.02) and (dropped == 0).any(1).float().mean() < 1
    assert torch.equal(objective.dropped(rows[7:9], keys[7:9]), dropped[7:9])
    assert torch.equal(objective.eval().dropped(rows, keys), rows)


@pytest.mark.parametrize("sample", [SCAN, PICTURE])
def test_every_kind_of_encoder_and_input(sample):
    batch = volumes(3, sample)
    torch.manual_seed(0)
    patches = Patches(width=24, depth=3, heads=2, patch=2).build(sample)
    for model, levels, width in (
        (encoder(sample), None, 14),
        (encoder(sample), [2], 8),
        (patches, [1, 3], 48),
        (patches, None, 24),
    ):
        objective = voco(model, levels=levels)
        assert objective.head[0].in_features == width
        loss = objective(batch)
        loss.total.backward()
        assert loss.total.isfinite() and next(model.parameters()).grad is not None
    crops = torch.rand(5, sample.channels, *[4] * len(sample.size))
    features = patches(crops, layers=(1, 3))
    expected = torch.cat([layer.mean(1) for layer in features.layers], 1)
    assert torch.equal(embedding(patches, crops, [1, 3]), expected)
    for model in (patches, encoder(sample)):
        with pytest.raises(TilthError, match=r"no layer 9|no number 9"):
            voco(model, levels=[9])


def test_a_grid_along_all_axes():
    objective = voco(grid=[2, 2, 2])
    found = objective.answers(torch.rand(2, 1, 8, 8, 8), torch.arange(2))
    assert found.labels.shape == (2, 2, 8) and found.student.shape == (2, 10, 8)
    assert torch.allclose(found.labels.sum(-1), torch.ones(2, 2), atol=1e-6)
