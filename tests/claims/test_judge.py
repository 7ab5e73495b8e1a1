"""The rules of docs/claims.md, each against numbers for which a plausible wrong rule says something else."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tilth.claim_spec import Expectation
from tilth.claims.judge import judge, t_interval

UTILITY = "audit.model_utility"


def measure(**arms):
    """arm=[value of seed 0, of seed 1, ...] -> metrics of the judge."""
    return {arm: {seed: {UTILITY: value} for seed, value in enumerate(values)} for arm, values in arms.items()}


def judged(metrics, seeds=None, **expected):
    expectation = Expectation.model_validate({"metric": UTILITY, **expected})
    ran = len(next(iter(metrics.values())))
    [one] = judge(metrics, [expectation], seeds=ran if seeds is None else seeds).judged
    return one


npo, ascent = [0.61, 0.58, 0.66], [0.30, 0.35, 0.31]
compared = {"higher": "npo", "than": "ascent", "by": 0.05}


def test_the_interval_is_the_paired_t_test_of_scipy():
    one = judged(measure(npo=npo, ascent=ascent), **compared)
    paired = stats.ttest_rel(npo, ascent).confidence_interval(0.95)
    assert one.measured == pytest.approx(np.mean(npo) - np.mean(ascent), abs=1e-12)
    assert one.interval == pytest.approx((paired.low, paired.high), abs=1e-12)
    assert one.per_seed == pytest.approx({0: 0.31, 1: 0.23, 2: 0.35})
    assert one.met is True


def test_pairing_matters():
    """Seeds differ far more than arms: unpaired, this interval would hold 0."""
    one = judged(measure(npo=[0.1, 0.5, 0.9], ascent=[0.0, 0.41, 0.79]), **compared)
    assert one.met is True and one.interval[0] > 0.07
    unpaired = stats.ttest_ind([0.1, 0.5, 0.9], [0.0, 0.41, 0.79]).confidence_interval()
    assert unpaired.low < 0


def test_another_metric_of_the_same_run_is_taken_off_first():
    """Of both arms the metric is far above 0; by how much it is above its floor is another matter."""
    metrics = {
        "npo": {0: {UTILITY: 0.61, "audit.floor": 0.40}, 1: {UTILITY: 0.58, "audit.floor": 0.40}},
        "ascent": {0: {UTILITY: 0.50, "audit.floor": 0.20}, 1: {UTILITY: 0.52, "audit.floor": 0.21}},
    }
    level = judged(metrics, minus="audit.floor", arm="npo", at_least=0.19, every_seed=True)
    assert level.per_seed == pytest.approx({0: 0.21, 1: 0.18}) and level.met is False
    compared = judged(metrics, minus="audit.floor", higher="ascent", than="npo", by=0.1)
    assert compared.measured == pytest.approx((0.30 - 0.21 + 0.31 - 0.18) / 2)
    del metrics["npo"][1]["audit.floor"]
    missing = judged(metrics, minus="audit.floor", arm="npo", at_least=0.1)
    assert missing.met is False and missing.reason == "arm 'npo' has no metric 'audit.floor' in seed 1"


def test_orientation():
    metrics = measure(npo=npo, ascent=ascent)
    assert judged(metrics, higher="npo", than="ascent", by=0.05).met is True
    assert judged(metrics, lower="ascent", than="npo", by=0.05).met is True
    assert judged(metrics, lower="npo", than="ascent", by=0.05).met is False
    assert judged(metrics, higher="ascent", than="npo", by=0.05).met is False
    assert judged(metrics, lower="ascent", than="npo").measured < 0


def test_a_mean_short_of_the_margin_is_not_met_however_certain_its_direction():
    one = judged(measure(npo=[0.540, 0.541, 0.542], ascent=[0.50, 0.50, 0.50]), **compared)
    assert one.interval[0] > 0 and one.met is False
    less = judged(measure(npo=[0.46, 0.459, 0.458], ascent=[0.50, 0.50, 0.50]), lower="npo", than="ascent", by=0.05)
    assert less.interval[1] < 0 and less.met is False


def test_an_interval_that_holds_zero_leaves_it_undecided():
    one = judged(measure(npo=[0.9, 0.5, 0.52], ascent=[0.3, 0.5, 0.5]), **compared)
    assert one.measured > 0.05 and one.interval[0] < 0 < one.interval[1]
    assert one.met is None


def test_the_margin_is_asked_of_the_mean_and_only_the_direction_of_the_interval():
    one = judged(measure(npo=[0.57, 0.55, 0.59], ascent=[0.5, 0.5, 0.5]), **compared)
    assert 0 < one.interval[0] < 0.05 < one.measured
    assert one.met is True


def test_a_margin_met_to_the_last_bit_is_met():
    assert 0.85 - 0.8 < 0.05
    assert judged(measure(npo=[0.85] * 3, ascent=[0.8] * 3), **compared).met is True


def test_higher_without_a_margin_is_not_equal():
    same = measure(npo=[0.5] * 3, ascent=[0.5] * 3)
    assert judged(same, higher="npo", than="ascent").met is False
    assert judged(same, lower="npo", than="ascent").met is False
    assert judged(same, higher="npo", than="ascent", times=1).met is False
    assert judged(same, higher="npo", than="ascent", every_seed=True).met is False


def test_at_most_this_much_worse_is_certain_beyond_the_allowance_not_beyond_zero():
    close = measure(ours=[0.79, 0.80, 0.80], peer=[0.80, 0.80, 0.81])
    assert judged(close, higher="ours", than="peer", by=-0.05).met is True
    assert judged(close, higher="ours", than="peer", by=-0.001).met is False
    noisy = measure(ours=[0.70, 0.80, 0.90], peer=[0.80, 0.80, 0.80])
    assert judged(noisy, higher="ours", than="peer", by=-0.05).met is None
    assert judged(measure(ours=[1.01, 1.02, 1.0], peer=[1.0] * 3), lower="ours", than="peer", by=-0.1).met is True


def test_ratios_are_of_each_seed_and_their_interval_is_of_the_logarithm():
    drift = measure(ascent=[2027.0, 2162.0, 2090.0], npo=[5.6, 6.6, 6.0])
    one = judged(drift, higher="ascent", than="npo", times=30)
    ratios = np.array([2027 / 5.6, 2162 / 6.6, 2090 / 6.0])
    interval = stats.ttest_1samp(np.log(ratios), 0).confidence_interval()
    assert one.measured == pytest.approx(stats.gmean(ratios), rel=1e-12)
    assert one.interval == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-12)
    assert one.difference == pytest.approx(np.mean([2027 - 5.6, 2162 - 6.6, 2090 - 6.0]))
    assert one.met is True
    assert judged(drift, higher="ascent", than="npo", times=400).met is False
    assert judged(drift, lower="npo", than="ascent", times=1 / 30).met is True
    assert judged(drift, lower="npo", than="ascent", times=1 / 400).met is False


def test_a_ratio_is_certain_beyond_one_or_beyond_a_milder_bound():
    assert judged(measure(a=[1.0, 2.0, 8.0], b=[1.0] * 3), higher="a", than="b", times=2).met is None
    assert judged(measure(a=[0.97, 0.98, 0.99], b=[1.0] * 3), higher="a", than="b", times=0.9).met is True
    assert judged(measure(a=[0.91, 0.98, 1.08], b=[1.0] * 3), higher="a", than="b", times=0.95).met is None


@pytest.mark.parametrize("a, b", [(0.0, 0.0), (-1.0, 2.0), (1.0, -2.0)])
def test_a_ratio_of_what_has_none_is_not_met_and_says_so(a, b):
    one = judged(measure(a=[a] * 3, b=[b] * 3), higher="a", than="b", times=2, every_seed=True)
    assert one.met is False and "above 0" in one.reason


def test_never_collapsing_is_infinitely_later_in_that_seed():
    """A collapse step of infinity: each seed can be judged, a mean cannot be certain."""
    steps = measure(ascent=[20.0, 26.0, 23.0], npo=[242.0, 132.0, math.inf])
    assert judged(steps, higher="npo", than="ascent", times=3, every_seed=True).met is True
    one = judged(steps, higher="npo", than="ascent", times=3)
    assert one.met is None and one.interval is None and one.measured == math.inf
    both = measure(ascent=[20.0, 26.0, math.inf], npo=[242.0, 132.0, math.inf])
    assert judged(both, higher="npo", than="ascent", times=3, every_seed=True).met is False


def test_infinities_of_both_signs_have_no_mean():
    one = judged(measure(a=[math.inf, -math.inf, 1.0], b=[0.0] * 3), higher="a", than="b")
    assert one.met is False and one.measured is None


def test_levels_are_certain_beyond_their_own_bound():
    near, far = measure(npo=[0.90, 0.92, 0.91]), measure(npo=[0.97, 0.98, 0.975])
    assert judged(near, arm="npo", at_least=0.9).met is None
    assert judged(far, arm="npo", at_least=0.9).met is True
    assert judged(far, arm="npo", at_least=0.98).met is False
    assert judged(far, arm="npo", at_most=0.9).met is False
    assert judged(far, arm="npo", at_most=0.999).met is True
    assert judged(measure(npo=[1.0] * 3), arm="npo", at_least=1.0).met is True
    one = judged(near, arm="npo", at_least=0.9)
    assert one.measured == pytest.approx(0.91) and one.difference is None
    assert one.interval == pytest.approx(stats.t.interval(0.95, 2, loc=0.91, scale=stats.sem([0.90, 0.92, 0.91])))


def test_tiny_levels_are_not_swallowed_by_rounding():
    assert judged(measure(a=[2e-12] * 3), arm="a", at_most=1e-12).met is False


def test_every_seed_asks_each_seed_and_no_interval():
    scattered = measure(npo=[0.9, 0.5, 0.52], ascent=[0.3, 0.4, 0.45])
    assert judged(scattered, **compared).met is None
    assert judged(scattered, **compared, every_seed=True).met is True
    one = judged(measure(npo=[0.9, 0.9, 0.52], ascent=[0.3, 0.3, 0.5]), **compared, every_seed=True)
    assert one.met is False and "1 of 3" in one.reason
    assert judged(measure(a=[0.95, 0.91, 0.89]), arm="a", at_least=0.9, every_seed=True).met is False


def test_one_seed_decides_nothing_in_favour():
    lone = measure(npo=[0.9], ascent=[0.1])
    assert judged(lone, **compared).met is None
    assert judged(lone, **compared, seeds=3).met is None
    assert judged(lone, **compared, every_seed=True, seeds=3).met is None
    assert judged(lone, higher="ascent", than="npo").met is False


def test_fewer_seeds_than_claimed_decide_nothing_in_favour():
    two = measure(npo=[0.61, 0.61], ascent=[0.30, 0.31])
    assert judged(two, **compared, seeds=2).met is True
    assert judged(two, **compared, seeds=3).met is None
    assert "2 of 3" in judged(two, **compared, seeds=3).reason


def test_a_claim_of_one_seed_is_decided_only_when_each_seed_is_asked():
    """`seeds: 1, every_seed: true` is how a recipe says that a number does not vary."""
    lone = measure(npo=[0.9], ascent=[0.1])
    assert judged(lone, **compared, seeds=1).met is None
    assert judged(lone, **compared, every_seed=True, seeds=1).met is True


@pytest.mark.parametrize("broken", [math.nan, None])
@pytest.mark.parametrize("asked", [compared, {"arm": "npo", "at_least": 0.0}, {"lower": "npo", "than": "ascent"}])
def test_a_number_that_is_missing_or_none_is_not_met_in_any_form(broken, asked):
    metrics = measure(npo=[0.6, 0.6, 0.6], ascent=[0.3, 0.3, 0.3])
    metrics["npo"][1][UTILITY] = broken
    one = judged(metrics, **asked)
    assert one.met is False and "seed 1" in one.reason and "'npo'" in one.reason


def test_a_seed_that_one_arm_lacks_is_not_dropped():
    metrics = measure(npo=[0.6, 0.6, 0.6], ascent=[0.3, 0.3, 0.3])
    del metrics["ascent"][2]
    assert judged(metrics, **compared).met is False


def test_the_verdict():
    metrics = measure(npo=npo, ascent=ascent)
    met = Expectation(metric=UTILITY, higher="npo", than="ascent")
    not_met = Expectation(metric=UTILITY, lower="npo", than="ascent")
    undecided = Expectation(metric=UTILITY, arm="npo", at_least=0.61)
    assert judge(metrics, [undecided], seeds=3).judged[0].met is None

    def verdict(*expect):
        return judge(metrics, expect, seeds=3).verdict

    def reported(one):
        return one.model_copy(update={"reported": True})

    assert verdict(met) == "holds"
    assert verdict(met, undecided) == "inconclusive"
    assert verdict(met, undecided, not_met) == "fails"
    assert verdict(met, reported(not_met), reported(undecided)) == "holds"
    assert verdict(reported(met)) == "inconclusive"
    assert judge({}, [met], seeds=3).verdict == "fails"


_PAIRS = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=6)


@given(_PAIRS, st.floats(-1, 1), st.booleans())
def test_exchanging_arms_and_direction_says_the_same(pairs, by, every_seed):
    metrics = measure(a=[a for a, _ in pairs], b=[b for _, b in pairs])
    up = judged(metrics, higher="a", than="b", by=by, every_seed=every_seed)
    down = judged(metrics, lower="b", than="a", by=by, every_seed=every_seed)
    assert (up.met, up.measured) == (down.met, pytest.approx(-down.measured))


@given(_PAIRS)
def test_of_two_opposite_expectations_at_most_one_is_met(pairs):
    metrics = measure(a=[a for a, _ in pairs], b=[b for _, b in pairs])
    assert not (judged(metrics, higher="a", than="b").met and judged(metrics, lower="a", than="b").met)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6))
def test_a_ratio_says_what_its_inverse_says(values):
    metrics = measure(a=values, b=[1.0] * len(values))
    up, down = judged(metrics, higher="a", than="b", times=1.5), judged(metrics, lower="b", than="a", times=1 / 1.5)
    assert up.met == down.met
    assert up.measured == pytest.approx(1 / down.measured)


def test_what_is_written_down_is_strict_json():
    one = judged(measure(npo=npo, ascent=ascent), **compared, name="NPO keeps more")
    plain = json.loads(json.dumps(one.plain(), allow_nan=False))
    assert plain["met"] is True and plain["difference"] == pytest.approx(0.29666666)
    assert plain["metric"] == UTILITY and plain["by"] == 0.05 and plain["sentence"] == "NPO keeps more"
    assert len(plain["interval"]) == 2 and plain["per_seed"].keys() == {"0", "1", "2"}


def test_an_interval_needs_two_values():
    assert t_interval([1.0]) is None
    assert t_interval([1.0, 1.0]) == (1.0, 1.0)
