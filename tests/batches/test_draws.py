"""Random numbers on a device: those of the ground's splitmix64, addressed by example and name."""

import numpy as np
import pytest
import torch

from tilth.batches import draws
from tilth.noise import GOLDEN, Noise, mix


def keys(positions, seed=3):
    return torch.from_numpy(Noise(seed, np.asarray(positions)).keys())


def test_signed_arithmetic_is_the_unsigned_splitmix64():
    some = keys(range(50))
    start = mix(some.numpy().view(np.uint64) + np.uint64(draws._key("mask") % 2**64))
    counters = np.arange(1, 8, dtype=np.uint64)
    expected = (mix(start[:, None] + counters * GOLDEN) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    assert np.array_equal(draws.uniform(some, "mask", 7).numpy(), expected)


def test_an_example_draws_the_same_in_any_company_and_shape():
    some, alone = keys([5, 9, 2]), keys([9])
    assert torch.equal(draws.uniform(some, "a", 4)[1:2], draws.uniform(alone, "a", 4))
    assert torch.equal(draws.uniform(some, "a", 6)[:, :4], draws.uniform(some, "a", 4))
    assert torch.equal(draws.normal(some, "a", 2, 3)[1], draws.normal(alone, "a", 2, 3)[0])


def test_names_seeds_and_splits_are_independent_and_the_distributions_right():
    some = keys(range(400))
    first = draws.uniform(some, "a", 100).flatten()
    for other in (
        draws.uniform(some, "b", 100),
        draws.uniform(keys(range(400), 4), "a", 100),
        draws.uniform(draws.split(some, "v"), "a", 100),
    ):
        assert abs(float(torch.corrcoef(torch.stack([first, other.flatten()]))[0, 1])) < 0.02
    assert float(first.min()) >= 0 and float(first.max()) < 1 and float(first.mean()) == pytest.approx(0.5, abs=0.01)
    values = draws.normal(some, "n", 100)
    assert float(values.mean()) == pytest.approx(0, abs=0.02) and float(values.std()) == pytest.approx(1, abs=0.02)


def test_draws_are_compiled_whole_and_stay_the_same():
    some = keys(range(6))
    drawn = lambda given: draws.uniform(draws.split(given, "v"), "crop", 22)[:, 10:20].exp() + draws.normal(given, "n", 10)
    assert torch.allclose(torch.compile(drawn, fullgraph=True)(some), drawn(some), atol=1e-5)
