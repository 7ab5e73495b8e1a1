"""BYOL."""

import pytest
import torch

from tests.pretrain.images.two_views import drawn, encoder, pictures, swapped, without_gradient
from tilth.contracts import use


def byol(model, **settings):
    return use("pretrain", "byol", head_width=12, head_out=6, **settings).build(model)


def test_the_loss_is_the_distance_of_directions_both_ways():
    objective, batch = byol(encoder()), pictures(4)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.mul_(1.1)
    views, expected = drawn(objective, batch), 0.0
    for student, teacher in ((0, 1), (1, 0)):
        predicted = objective.predictor(objective.projector(objective.model(views[student]).pooled))
        target = objective.teacher_projector.network(objective.teacher.network(views[teacher]).pooled)
        for p, z in zip(predicted, target, strict=True):
            expected += float((p / p.norm() - z / z.norm()).square().sum().detach()) / 4
    assert objective(batch).total.item() == pytest.approx(expected, rel=1e-4)


def test_the_order_of_views_makes_no_difference():
    objective, batch = byol(encoder()), pictures(4)
    assert objective(batch).total.item() == pytest.approx(swapped(objective, batch).item(), rel=1e-5)


def test_teachers_have_no_gradients_and_follow_by_the_momentum():
    objective = byol(encoder(), momentum=0.9, momentum_steps=2)
    before = [p.clone() for p in [*objective.teacher.parameters(), *objective.teacher_projector.parameters()]]
    objective(pictures(4)).total.backward()
    students = [*objective.model.parameters(), *objective.projector.parameters()]
    assert all(parameter.grad is not None for parameter in [*students, *objective.predictor.parameters()])
    torch.optim.SGD(students, 0.1).step()
    objective.after_step(1)
    assert without_gradient(objective.teacher) and without_gradient(objective.teacher_projector)
    after = [*objective.teacher.parameters(), *objective.teacher_projector.parameters()]
    for mine, old, new in zip(after, before, students, strict=True):  # half way from 0.9 to 1
        assert torch.allclose(mine, 0.95 * old + 0.05 * new, atol=1e-7)
    kept = [parameter.clone() for parameter in after]
    torch.optim.SGD(students, 0.1).step()
    objective.after_step(2)
    assert all(map(torch.equal, after, kept))
