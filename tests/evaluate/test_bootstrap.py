import numpy as np
import pytest

from tilth.evaluate import metrics
from tilth.evaluate.bootstrap import difference, estimate, mean


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = estimate(mean, [values])
    assert found.value == values.mean() and found.count == 400
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_about_ninety_five_of_a_hundred_intervals_hold_the_truth():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = estimate(mean, [generator.normal(0.0, 1.0, 60)], resamples=300)
        held += found.low <= 0 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_a_difference_is_taken_over_the_same_examples():
    hard = np.random.default_rng(2).normal(0.0, 5.0, 100)
    found = difference(mean, [hard + 0.1], [hard])
    assert found.value == pytest.approx(0.1) and found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    apart = estimate(lambda a, b: float(a.mean() - b.mean()), [hard + 0.1, hard])
    assert apart.high - apart.low > 1


def test_groups_are_drawn_apart_and_an_auc_of_nothing_holds_one_half():
    generator = np.random.default_rng(3)
    found = estimate(metrics.member_auc, [generator.normal(size=80), generator.normal(size=50)])
    assert found.low < 0.5 < found.high and found.count == 50
    assert estimate(metrics.member_auc, [np.zeros(5), np.ones(5)]).low == 1.0


def test_one_example_has_no_interval_and_the_same_question_gets_the_same_answer():
    one = estimate(mean, [np.array([0.3])])
    assert (one.value, one.low, one.high, one.count) == (0.3, None, None, 1)
    values = np.arange(10.0)
    assert estimate(mean, [values]) == estimate(mean, [values])
