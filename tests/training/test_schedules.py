import math

import pytest

from tilth.registry import use
from tilth.training.schedules import as_steps

NAMES = ["constant", "linear", "cosine", "warmup_stable_decay"]


def schedule(name, **settings):
    return use("schedule", name, **settings).build()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_every_rate_lies_between_zero_and_the_peak_and_no_update_is_wasted(name, steps):
    rates = [schedule(name, warmup=0.1)(step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_rises_linearly_to_the_peak(name):
    rates = [schedule(name, warmup=4)(step, 100) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates == [schedule(name, warmup=0.04)(step, 100) for step in range(5)]


def test_known_values():
    cosine = schedule("cosine", warmup=0, final=0.1)
    assert [cosine(step, 100) for step in (0, 50, 100, 200)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert cosine(25, 100) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    linear = schedule("linear", warmup=0, final=0.5)
    assert [linear(step, 10) for step in (0, 5, 10)] == pytest.approx([1, 0.75, 0.5])
    stable = schedule("warmup_stable_decay", warmup=0, decay=20, final=0.0)
    assert [stable(step, 100) for step in (0, 80, 85, 100)] == pytest.approx([1, 1, 0.5, 0])


def test_lengths_below_one_are_shares():
    assert [as_steps(amount, 50) for amount in (0, 0.1, 0.999, 1, 7, 80)] == [0, 5, 50, 1, 7, 50]
