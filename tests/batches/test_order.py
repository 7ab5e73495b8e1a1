import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tilth.batches.order import Order, hashed_uniform
from tilth.errors import TilthError


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 5))
def test_every_epoch_draws_every_example_once(count, seed, epoch):
    drawn = Order(count, seed).indices(epoch * count, (epoch + 1) * count)
    assert np.array_equal(np.sort(drawn), np.arange(count))


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 500), seed=st.integers(0, 1000), start=st.integers(0, 2000), length=st.integers(0, 1200), cut=st.data()
)
def test_what_is_drawn_does_not_depend_on_how_positions_are_cut(count, seed, start, length, cut):
    order = Order(count, seed)
    middle = cut.draw(st.integers(start, start + length))
    parts = np.concatenate([order.indices(start, middle), order.indices(middle, start + length)])
    assert np.array_equal(order.indices(start, start + length), parts)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 400), seed=st.integers(0, 1000), until=st.integers(0, 1500), data=st.data())
def test_positions_is_the_inverse_of_indices(count, seed, until, data):
    order = Order(count, seed)
    index = data.draw(st.integers(0, count - 1))
    assert np.array_equal(order.positions(index, until), np.flatnonzero(order.indices(0, until) == index))


def test_positions_of_several_examples_are_the_union():
    order = Order(100, 3)
    drawn = order.indices(0, 350)
    assert np.array_equal(order.positions(np.array([5, 70]), 350), np.flatnonzero((drawn == 5) | (drawn == 70)))


def test_epochs_and_seeds_give_other_orders():
    order = Order(1000, 0)
    first, second, other = order.indices(0, 1000), order.indices(1000, 2000), Order(1000, 1).indices(0, 1000)
    assert (first == second).sum() < 10 and (first == other).sum() < 10 and (first == np.arange(1000)).sum() < 10


@pytest.mark.parametrize("count", [3, 4, 5, 7, 16, 37])
def test_each_place_holds_each_example_equally_often(count):
    epochs = 4_000
    drawn = Order(count, 11).indices(0, count * epochs).reshape(epochs, count)
    table = np.stack([np.bincount(column, minlength=count) for column in drawn.T])
    statistic = ((table - epochs / count) ** 2 / (epochs / count)).sum()
    assert stats.chi2.sf(statistic, (count - 1) ** 2) > 1e-4


@pytest.mark.parametrize("count", [4, 5, 6])
def test_all_orders_of_few_examples_occur_equally_often(count):
    drawn = Order(count, 5).indices(0, count * 72_000).reshape(-1, count)
    seen = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(seen) == np.prod(np.arange(1, count + 1))
    assert stats.chisquare(seen).pvalue > 1e-4


def test_neighbours_are_not_drawn_together_more_often_than_by_chance():
    drawn = Order(4096, 2).indices(0, 4096)
    together = np.abs(np.diff(drawn)) == 1
    assert together.sum() < 12  # 2 expected
    assert abs(stats.spearmanr(drawn[:-1], drawn[1:]).statistic) < 0.06


def test_a_corpus_too_large_for_memory_is_shuffled():
    order = Order(10**13, 1)
    drawn = order.indices(10**13 - 5, 10**13 + 5)
    assert (drawn >= 0).all() and (drawn < 10**13).all()
    assert all(position in order.positions(int(example), 2 * 10**13) for position, example in enumerate(drawn, 10**13 - 5))


def test_an_empty_set_is_refused():
    with pytest.raises(TilthError, match="no examples"):
        Order(0, 1)


def test_uniform_numbers_do_not_depend_on_the_rest_of_the_batch():
    whole = hashed_uniform(3, "mask", np.arange(50), (4, 7))
    picked = hashed_uniform(3, "mask", np.array([17, 3, 17]), (4, 7))
    assert whole.shape == (50, 4, 7) and whole.dtype == np.float64
    assert np.array_equal(picked, whole[[17, 3, 17]])
    assert hashed_uniform(3, "mask", np.arange(5), ()).shape == (5,)


def test_uniform_numbers_are_uniform():
    numbers = hashed_uniform(0, "mask", np.arange(20_000), (5,)).ravel()
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("other", [(0, "pairs", 0), (1, "mask", 0), (0, "mask", 1)], ids=["name", "seed", "position"])
def test_another_name_seed_or_position_gives_independent_numbers(other):
    seed, name, shift = other
    one = hashed_uniform(0, "mask", np.arange(50_000))
    two = hashed_uniform(seed, name, np.arange(50_000) + shift)
    table = np.histogram2d(one, two, bins=10)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_numbers_of_one_position_are_independent():
    numbers = hashed_uniform(0, "mask", np.arange(50_000), (2,))
    assert stats.chi2_contingency(np.histogram2d(*numbers.T, bins=10)[0]).pvalue > 1e-4
