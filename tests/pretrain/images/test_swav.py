"""SwAV."""

import numpy as np
import pytest
import torch

from tests.pretrain.images.two_views import drawn, encoder, pictures, swapped
from tilth.contracts import use
from tilth.errors import TilthError

CROPS = use("views", "multi_crop", local_size=4, local_crops=3)


def swav(model, **settings):
    return use("pretrain", "swav", **{"prototypes": 5, "head_width": 12, "head_out": 6, "views": CROPS, **settings}).build(model)


def test_the_loss_is_the_cross_entropy_with_the_assignments_of_other_views():
    objective, batch = swav(encoder()), pictures(4)
    views = drawn(objective, batch)
    assert [tuple(view.shape[2:]) for view in views] == [(8, 8)] * 2 + [(4, 4)] * 3
    projected = objective.head(torch.cat([objective.model(view).pooled for view in views])).double().detach().numpy()
    prototypes = objective.prototypes.weight.double().detach().numpy()
    scores = [[[z @ c / np.linalg.norm(z) for c in prototypes] for z in rows] for rows in projected.reshape(5, 4, -1)]
    scores = np.array(scores)
    expected = []
    for s in range(2):
        q = np.exp(scores[s] / 0.05)
        for _ in range(3):
            q = q / q.sum(0, keepdims=True) / 5
            q = q / q.sum(1, keepdims=True) / 4
        for v in range(5):
            if v != s:
                for i in range(4):
                    p = np.exp(scores[v, i] / 0.1) / np.exp(scores[v, i] / 0.1).sum()
                    expected.append(-(4 * q[i] * np.log(p)).sum())
    assert objective(batch).total.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_order_of_the_global_views_makes_no_difference():
    objective, batch = swav(encoder()), pictures(4)
    assert objective(batch).total.item() == pytest.approx(swapped(objective, batch).item(), rel=1e-5)


def test_prototypes_are_trained_and_stay_of_length_one():
    objective = swav(encoder())
    assert objective.prototypes.weight.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
    before = objective.prototypes.weight.detach().clone()
    objective(pictures(4)).total.backward()
    torch.optim.SGD(objective.parameters(), 1.0).step()
    objective.after_step(1)
    assert objective.prototypes.weight.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
    assert not torch.allclose(objective.prototypes.weight, before)


def test_two_views_suffice_and_one_is_refused():
    assert swav(encoder(), views=use("views", "simclr"))(pictures(4)).total.isfinite()
    with pytest.raises(TilthError, match="one was made"):
        swav(encoder(), views=use("views", "mae"))(pictures(4))
