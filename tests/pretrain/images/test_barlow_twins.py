"""Barlow Twins."""

import numpy as np
import pytest
import torch

from tests.pretrain.images.two_views import constant, drawn, encoder, pictures, swapped
from tilth.contracts import use
from tilth.pretrain.images.barlow_twins import correlation


def barlow(model, **settings):
    return use("pretrain", "barlow", head_width=12, head_out=6, **settings).build(model)


def test_the_loss_is_the_sum_over_pairs_of_numbers():
    objective, batch = barlow(encoder(), redundancy=0.1), pictures(8)
    first, second = (objective.head(objective.model(view).pooled).double().detach().numpy() for view in drawn(objective, batch))
    expected = 0.0
    for i in range(6):
        for j in range(6):
            a, b = first[:, i] - first[:, i].mean(), second[:, j] - second[:, j].mean()
            c = (a * b).mean() / np.sqrt(((a**2).mean() + 1e-5) * ((b**2).mean() + 1e-5))
            expected += (1 - c) ** 2 if i == j else 0.1 * c**2
    loss = objective(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.parts["invariance"] + 0.1 * loss.parts["shared"] == pytest.approx(expected, rel=1e-4)


def test_correlations_are_numpys():
    rows = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)) * 5
    expected = np.corrcoef(rows[0].numpy(), rows[1].numpy(), rowvar=False)[:3, 3:]
    assert correlation(*rows, False).numpy() == pytest.approx(expected, abs=1e-5)


def test_a_constant_encoder_has_no_correlations_and_pays_one_for_each_number():
    assert barlow(constant(encoder()))(pictures(4)).total.item() == pytest.approx(6.0, rel=1e-4)


def test_views_that_agree_in_independent_numbers_cost_nothing():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert torch.allclose(correlation(rows, 3 * rows + 2, False), torch.eye(2), atol=1e-4)


def test_the_order_of_views_makes_no_difference():
    objective, batch = barlow(encoder()), pictures(6)
    assert objective(batch).total.item() == pytest.approx(swapped(objective, batch).item(), rel=1e-5)


def test_everything_is_trained():
    objective = barlow(encoder())
    objective(pictures(6)).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in objective.parameters())
