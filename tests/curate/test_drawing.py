from collections import Counter

import daft
import pytest

from tests.curate.frames import fates, frame, kept
from tilth.curate.mix import Mix
from tilth.curate.sample import Sample
from tilth.errors import TilthError

MANY = frame(["x"] * 4000, source=["a"] * 2500 + ["b"] * 1000 + ["c"] * 500)


def shares(step, rows=MANY):
    source = dict(zip(*(rows.to_pydict()[name] for name in ("id", "source"))))
    return Counter(source[name] for name in kept(step, rows))


def test_a_count_is_exact_and_a_fraction_close():
    assert len(kept(Sample(count=123), MANY)) == 123
    assert len(kept(Sample(count=5000), MANY)) == 4000
    assert len(kept(Sample(fraction=0.25), MANY)) == pytest.approx(1000, abs=140)  # five standard deviations
    assert len(kept(Sample(fraction=1.0), MANY)) == 4000
    assert len(kept(Sample(fraction=0.0), MANY)) == 0


def test_a_draw_depends_on_ids_and_seed_and_not_on_the_order_of_rows():
    shuffled = MANY.sort(daft.col("id"), desc=True)
    for step in (Sample(count=300), Sample(fraction=0.1), Mix(weights={"a": 1, "b": 2}, rows=600)):
        assert sorted(kept(step, MANY)) == sorted(kept(step, shuffled))
    assert kept(Sample(count=300, seed=1), MANY) == kept(Sample(count=300, seed=1), MANY)
    overlap = set(kept(Sample(count=400, seed=1), MANY)) & set(kept(Sample(count=400, seed=2), MANY))
    assert len(overlap) == pytest.approx(40, abs=35)


def test_a_smaller_share_lies_within_a_larger_one():
    assert set(kept(Sample(fraction=0.1), MANY)) < set(kept(Sample(fraction=0.2), MANY))
    assert set(kept(Sample(count=10), MANY)) < set(kept(Sample(count=20), MANY))


def test_exactly_one_size_is_needed():
    for settings in ({}, {"count": 1, "fraction": 0.5}):
        with pytest.raises(TilthError, match="either"):
            Sample(**settings)


def test_a_mixture_is_as_large_as_its_scarcest_source_allows():
    assert shares(Mix(weights={"a": 1, "b": 1, "c": 2})) == {"a": 250, "b": 250, "c": 500}
    assert shares(Mix(weights={"a": 0.8, "b": 0.2})) == {"a": 2500, "b": 625}


def test_a_mixture_of_a_given_size_adds_up():
    assert shares(Mix(weights={"a": 1, "b": 1, "c": 1}, rows=100)) in [{"a": 34, "b": 33, "c": 33}]
    assert sum(shares(Mix(weights={"a": 5, "b": 3, "c": 3}, rows=997)).values()) == 997


def test_what_has_no_weight_is_removed_with_a_reason():
    said = fates(Mix(weights={"a": 1, "b": 0}, rows=10), frame(["x"] * 40, source=["a"] * 20 + ["b"] * 10 + [None] * 10))
    assert Counter(said.values()) == {
        None: 10, "mix: beyond the share of its source": 10, "mix: source has no weight": 20,
    }  # fmt: skip


def test_numbers_can_be_mixed_too():
    rows = frame(["x"] * 4, year=[1999, 1999, 2000, 2000])
    assert len(kept(Mix(column="year", weights={"1999": 1}), rows)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": 1, "bb": 1}}, "no row has source 'bb'"),
        ({"weights": {"a": 1, "c": 1}, "rows": 1200}, "600 rows of source 'c' are needed, 500 are there"),
        ({"weights": {"a": 1}, "column": "sauce"}, "no column 'sauce'"),
    ],
)
def test_impossible_mixtures_say_why(settings, message):
    with pytest.raises(TilthError, match=message):
        Mix(**settings).fit(MANY)


def test_weights_of_nothing_are_refused():
    with pytest.raises(TilthError, match="weight above 0"):
        Mix(weights={"a": 0})
