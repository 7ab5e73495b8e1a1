"""MoCo v2."""

from math import exp, log

import pytest
import torch

from tests.pretrain.images.two_views import constant, drawn, encoder, pictures, without_gradient
from tilth.contracts import use


def moco(model, **settings):
    return use("pretrain", "moco_v2", **{"head_width": 12, "head_out": 6, "queue": 10, **settings}).build(model)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def test_the_loss_is_the_sum_over_the_queue():
    objective, batch = moco(encoder()), pictures(3)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.mul_(1.1)
    first, second = drawn(objective, batch)
    queries = unit(objective.head(objective.model(first).pooled)).double().detach()
    keys = unit(objective.teacher_head.network(objective.teacher.network(second).pooled)).double()
    expected, queue = 0.0, objective.queue.double()
    for query, key in zip(queries, keys, strict=True):
        own = exp(float(query @ key) / 0.2)
        expected -= log(own / (own + sum(exp(float(query @ other) / 0.2) for other in queue))) / 3
    assert objective(batch).total.item() == pytest.approx(expected, rel=1e-5)


def test_the_queue_takes_the_newest_for_the_oldest_and_wraps():
    objective = moco(encoder())
    start = objective.queue.clone()
    rows = unit(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)))
    objective.enqueue(rows[:4])
    assert torch.equal(objective.queue, torch.cat([rows[:4], start[4:]])) and objective.oldest == 4
    objective.enqueue(rows[4:12])
    assert torch.equal(objective.queue, torch.cat([rows[10:12], rows[2:10]])) and objective.oldest == 2


def test_more_keys_than_the_queue_holds_leave_the_last():
    objective, rows = moco(encoder()), torch.randn(13, 6)
    objective.enqueue(rows)
    assert sorted(objective.queue[:, 0].tolist()) == sorted(rows[3:, 0].tolist())


def test_training_fills_the_queue_and_looking_does_not():
    objective, batch = moco(encoder()), pictures(3)
    before = objective.queue.clone()
    objective.eval()(batch)
    assert torch.equal(objective.queue, before)
    objective.train()(batch)
    keys = unit(objective.teacher_head(objective.teacher(drawn(objective, batch)[1]).pooled))
    assert torch.allclose(objective.queue[:3], keys) and torch.equal(objective.queue[3:], before[3:])


def test_a_constant_encoder_is_at_log_of_queue_and_key():
    objective = moco(constant(encoder()))
    objective.teacher.follow(objective.model, 0.0)
    for _ in range(5):  # the last one meets nothing but keys of the encoder
        total = objective(pictures(3)).total
    assert total.item() == pytest.approx(log(10 + 1), rel=1e-5)


def test_teachers_have_no_gradients_and_follow_by_the_momentum():
    objective, batch = moco(encoder(), momentum=0.9), pictures(3)
    before = [p.clone() for p in [*objective.teacher.parameters(), *objective.teacher_head.parameters()]]
    objective(batch).total.backward()
    students = [*objective.model.parameters(), *objective.head.parameters()]
    assert all(parameter.grad is not None for parameter in students)
    torch.optim.SGD(students, 0.1).step()
    objective.after_step(1)
    assert without_gradient(objective.teacher) and without_gradient(objective.teacher_head)
    after = [*objective.teacher.parameters(), *objective.teacher_head.parameters()]
    for mine, old, new in zip(after, before, students, strict=True):
        assert torch.allclose(mine, 0.9 * old + 0.1 * new, atol=1e-7)


def test_no_batch_norm_anywhere():
    assert not any("BatchNorm" in type(module).__name__ for module in moco(encoder()).modules())


def test_once_the_queue_is_its_own_the_loss_falls():
    near = use("views", "simclr", scale=(0.8, 1.0), strength=0.1)
    objective = moco(encoder(), momentum=0.9, queue=32, head_out=12, views=near)
    batches = [pictures(16, seed) for seed in range(3)]
    optimiser = torch.optim.Adam([parameter for parameter in objective.parameters() if parameter.requires_grad], 1e-2)
    losses = []
    for step in range(1, 61):
        loss = objective(batches[step % 3]).total
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        objective.after_step(step)
        losses.append(loss.item())
    assert max(losses[2:6]) > 2.5 and sum(losses[-6:]) / 6 < 2


def test_the_queue_that_a_loss_was_computed_from_is_not_written_to():
    objective = moco(encoder())  # else compiled code, which drops copies, takes the backward pass from the new one
    found = objective.queue
    before = found.clone()
    objective(pictures(3))
    assert torch.equal(found, before) and not torch.equal(objective.queue, before)
    assert "queue" in objective.state_dict() and torch.equal(objective.state_dict()["queue"], objective.queue)
