"""Balanced assignments: their sums, and the authors' loop."""

import numpy as np
import pytest
import torch

from tilth.pretrain.images.sinkhorn import sinkhorn


def scores(count, prototypes, seed=0):
    """Cosines of random directions."""
    generator = torch.Generator().manual_seed(seed)
    both = [torch.randn(n, 128, generator=generator) for n in (count, prototypes)]
    rows, columns = (one / one.norm(dim=1, keepdim=True) for one in both)
    return rows @ columns.T


def by_loop(scores, epsilon, iterations):
    q = np.exp(scores.double().numpy() / epsilon)
    for _ in range(iterations):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for i in range(q.shape[0]):
            q[i] /= q[i].sum() * q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("iterations", [1, 3])
def test_it_is_scaling_of_rows_and_columns_in_turns(iterations):
    given = scores(6, 4)
    assert sinkhorn(given, 0.05, iterations, False).numpy() == pytest.approx(by_loop(given, 0.05, iterations), rel=1e-4)


def test_examples_and_prototypes_get_their_share():
    found = sinkhorn(scores(256, 32), 0.05, 3, False) / 256
    assert found.sum(1).tolist() == pytest.approx([1 / 256] * 256, abs=1e-3 / 256)
    assert found.sum(0).tolist() == pytest.approx([1 / 32] * 32, abs=1e-3)


def test_with_more_rounds_prototypes_get_their_share_exactly():
    found = sinkhorn(scores(64, 16), 0.05, 100, False)
    assert found.sum(0).tolist() == pytest.approx([4.0] * 16, rel=1e-3)


def test_a_favourite_prototype_is_not_everybodys():
    given = scores(32, 4)
    given[:, 0] += 0.5
    assert given.argmax(1).tolist() == [0] * 32
    assert sinkhorn(given, 0.05, 3, False).sum(0).max() < 10


def test_a_small_epsilon_overflows_nowhere():
    found = sinkhorn(scores(64, 16), 1e-3, 3, False)
    assert found.isfinite().all() and found.sum(1).tolist() == pytest.approx([1.0] * 64, rel=1e-5)
