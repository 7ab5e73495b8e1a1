"""VICReg."""

import numpy as np
import pytest
import torch

from tests.pretrain.images.two_views import constant, drawn, encoder, pictures, swapped
from tilth.contracts import use
from tilth.pretrain.images.vicreg import collapse


def vicreg(model, **settings):
    return use("pretrain", "vicreg", head_width=12, head_out=6, **settings).build(model)


def test_the_loss_is_the_sum_over_numbers_and_pairs_of_them():
    objective, batch = vicreg(encoder(), invariance=3.0, variance=2.0, covariance=5.0), pictures(8)
    views = [objective.head(objective.model(view).pooled).double().detach().numpy() for view in drawn(objective, batch)]
    agreement = np.mean([[(a - b) ** 2 for a, b in zip(x, y, strict=True)] for x, y in zip(*views, strict=True)])
    spread = shared = 0.0
    for rows in views:
        for i in range(6):
            spread += max(0.0, 1 - np.sqrt(np.var(rows[:, i], ddof=1) + 1e-4)) / 6
            shared += sum(np.cov(rows[:, i], rows[:, j])[0, 1] ** 2 / 6 for j in range(6) if j != i)
    assert objective(batch).total.item() == pytest.approx(3 * agreement + 2 * spread + 5 * shared, rel=1e-4)


def test_a_constant_encoder_pays_for_its_lack_of_variance():
    assert vicreg(constant(encoder()))(pictures(4)).total.item() == pytest.approx(25 * 2 * (1 - 0.01), rel=1e-4)


def test_spread_out_and_unrelated_numbers_cost_nothing():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])[:, None]
    spread, shared = collapse(rows, False)
    assert (spread.item(), shared.item()) == (0.0, 0.0)


def test_the_order_of_views_makes_no_difference():
    objective, batch = vicreg(encoder()), pictures(6)
    assert objective(batch).total.item() == pytest.approx(swapped(objective, batch).item(), rel=1e-5)


def test_everything_is_trained():
    objective = vicreg(encoder())
    objective(pictures(6)).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in objective.parameters())
