"""SimCLR."""

from math import exp, log

import pytest
import torch

from tests.pretrain.images.two_views import constant, drawn, encoder, pictures, swapped
from tilth.contracts import use
from tilth.errors import TilthError


def simclr(model, **settings):
    return use("pretrain", "simclr", head_width=12, head_out=6, **settings).build(model)


def test_the_loss_is_the_sum_over_pairs_of_views():
    objective, batch = simclr(encoder(), temperature=0.3), pictures(4)
    every = objective.head(torch.cat([objective.model(view).pooled for view in drawn(objective, batch)])).double()
    every = [z / z.norm() for z in every.detach()]
    expected = 0.0
    for i, z in enumerate(every):
        others = sum(exp(float(z @ other) / 0.3) for k, other in enumerate(every) if k != i)
        expected -= log(exp(float(z @ every[(i + 4) % 8]) / 0.3) / others) / 8
    assert objective(batch).total.item() == pytest.approx(expected, rel=1e-5)


def test_a_constant_encoder_is_at_log_of_all_other_views():
    assert simclr(constant(encoder()))(pictures(5)).total.item() == pytest.approx(log(2 * 5 - 1), rel=1e-6)


def test_the_order_of_views_makes_no_difference():
    objective, batch = simclr(encoder()), pictures(4)
    assert objective(batch).total.item() == pytest.approx(swapped(objective, batch).item(), rel=1e-5)


def test_everything_is_trained():
    objective = simclr(encoder())
    objective(pictures(4)).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_one_view_is_refused():
    with pytest.raises(TilthError, match="two views"):
        simclr(encoder(), views=use("views", "mae"))(pictures(2))
