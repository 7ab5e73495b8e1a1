"""InfoNCE against sums over pairs, and against the loss of transformers' CLIP."""

from math import exp, log

import pytest
import torch

from tilth.pretrain.images.contrast import Temperature, against_queue, pairs, two_views


def vectors(count, seed, width=5):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return float((a @ b) / (a.norm() * b.norm()))


def test_two_views_is_the_sum_over_pairs():
    first, second, temperature = vectors(4, 1), vectors(4, 2), 0.3
    every = [*first, *second]
    expected = []
    for i, one in enumerate(every):
        others = sum(exp(cosine(one, other) / temperature) for k, other in enumerate(every) if k != i)
        expected.append(-log(exp(cosine(one, every[(i + 4) % 8]) / temperature) / others))
    assert two_views(first, second, temperature, False).losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_two_views_of_a_constant_tell_nothing():
    same = torch.ones(6, 5)
    assert two_views(same, same, 0.1, False).losses.tolist() == pytest.approx([log(11)] * 12, rel=1e-6)


def test_two_views_is_right_where_the_partner_is_nearest():
    first = torch.eye(4)
    second = torch.eye(4)[[0, 1, 3, 2]]
    assert two_views(first, second, 0.1, False).right.tolist() == [True, True, False, False] * 2


def test_pairs_are_the_loss_of_clip():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    first, second = vectors(6, 1), vectors(6, 2)
    unit = [one / one.norm(dim=1, keepdim=True) for one in (first, second)]
    found = pairs(first, second, 0.07, False)
    assert found.losses.mean().item() == pytest.approx(image_text_contrastive_loss(unit[1] @ unit[0].T / 0.07).item(), rel=1e-5)
    assert found.losses.shape == (12,)


def test_against_queue_is_the_sum_over_the_queue():
    queries, keys, queue = vectors(3, 1), vectors(3, 2), vectors(7, 3)
    queue = queue / queue.norm(dim=1, keepdim=True)
    expected = []
    for query, key in zip(queries, keys, strict=True):
        own = exp(cosine(query, key) / 0.2)
        expected.append(-log(own / (own + sum(exp(cosine(query, other) / 0.2) for other in queue))))
    assert against_queue(queries, keys, queue, 0.2).losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_weights_make_halves_weigh_as_the_whole():
    found = pairs(vectors(6, 1), vectors(6, 2), 0.1, False)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 3.0]).repeat(2)
    whole = found.loss(weights)
    expected = (
        sum(weight * loss for weight, loss in zip(weights.tolist(), found.losses.tolist(), strict=True)) / weights.sum().item()
    )
    assert whole.total.item() == pytest.approx(expected, rel=1e-5) and whole.count == weights.sum()
    halves = [type(found)(found.losses[part], found.right[part]).loss(weights[part]) for part in (slice(5), slice(5, None))]
    assert sum(half.total * half.count for half in halves) / whole.count == pytest.approx(whole.total.item(), rel=1e-5)


def test_nothing_weighs_anything_and_the_loss_is_zero():
    loss = pairs(vectors(3, 1), vectors(3, 2), 0.1, False).loss(torch.zeros(6))
    assert loss.total == 0 and loss.count == 0


def test_a_learnt_temperature_has_a_gradient_and_a_limit():
    temperature = Temperature(0.07, learned=True, least=0.05)
    assert temperature().item() == pytest.approx(0.07)
    pairs(vectors(4, 1), vectors(4, 2), temperature(), False).losses.mean().backward()
    assert temperature.log.grad.abs() > 0
    with torch.no_grad():
        temperature.log.fill_(-5.0)
    temperature.limit()
    assert temperature().item() == pytest.approx(0.05)
    assert not Temperature(0.1).log.requires_grad


def test_half_precision_outside_leaves_the_softmax_whole():
    first, second = vectors(8, 1), vectors(8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = two_views(first, second, 0.05, False).losses
    assert torch.equal(inside, two_views(first, second, 0.05, False).losses)
