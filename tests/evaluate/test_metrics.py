import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from tilth.evaluate import metrics
from tilth.evaluate.transfer import member_transfer_rate

STARTS = np.array([0, 2, 5])  # two examples with 2 and 3 wrong answers


def test_forget_quality_of_the_gold_model_itself_is_one():
    ratios = np.random.default_rng(0).normal(size=50)
    assert metrics.forget_quality(ratios, ratios) == (1.0, 0.0)


def test_forget_quality_of_ratios_beyond_the_golds_range_vanishes():
    ratios = np.random.default_rng(0).normal(size=50)
    p, log_p = metrics.forget_quality(ratios, ratios + 100)
    assert p < 1e-10
    assert log_p == pytest.approx(math.log10(2 / math.comb(100, 50)))  # the exact two-sided value at a statistic of 1


def test_forget_quality_is_scipys_and_blind_to_the_direction_of_the_ratio():
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=60), generator.normal(0.4, 1, size=60)
    p, _ = metrics.forget_quality(one, other)
    assert p == ks_2samp(np.exp(one), np.exp(other)).pvalue
    assert p == pytest.approx(metrics.forget_quality(-one, -other)[0])
    folded = ks_2samp(np.exp(-np.abs(one)), np.exp(-np.abs(other))).pvalue
    assert p != pytest.approx(folded)  # min(R, 1/R) is not a monotone map of R: its test is another one


def test_an_underflowing_forget_quality_has_a_finite_logarithm():
    p, log_p = metrics.forget_quality(np.zeros(20_000), np.ones(20_000))
    assert p == 0.0 and log_p == -323.0


def test_truth_ratio_is_the_geometric_mean_of_wrong_over_right():
    average, wrong = np.log([2.0, 4.0]), np.log([4.0, 16.0, 2.0, 8.0, 32.0])
    ratio = np.exp(metrics.log_truth_ratio(average, wrong, STARTS))
    assert ratio == pytest.approx([2 / 8, 4 / 8])
    arithmetic = np.exp(metrics.log_truth_ratio(average, wrong, STARTS, wrong_mean="arithmetic"))
    assert arithmetic == pytest.approx([2 * (1 / 4 + 1 / 16) / 2, 4 * (1 / 2 + 1 / 8 + 1 / 32) / 3])


def test_both_truth_ratios_agree_where_the_wrong_answers_do():
    average, wrong = np.array([1.0, 700.0]), np.array([3.0, 3.0, 1200.0, 1200.0, 1200.0])
    geometric = metrics.log_truth_ratio(average, wrong, STARTS)
    assert geometric == pytest.approx([-2.0, -500.0])
    assert metrics.log_truth_ratio(average, wrong, STARTS, wrong_mean="arithmetic") == pytest.approx(geometric)


def test_aggregates_of_the_truth_ratio():
    log_ratio = np.log([0.25, 4.0, 1.0])
    assert metrics.utility_truth_ratio(log_ratio) == pytest.approx((0.75 + 0 + 0) / 3)
    assert metrics.forget_truth_ratio(log_ratio) == pytest.approx((0.25 + 0.25 + 1) / 3)
    extreme = np.array([-1e4, 1e4])
    assert metrics.utility_truth_ratio(extreme) == 0.5 and metrics.forget_truth_ratio(extreme) == 0.0


def test_option_probability():
    average, wrong = -np.log([0.5, 0.1]), -np.log([0.25, 0.25, 0.1, 0.1, 0.1])
    assert metrics.option_probability(average, wrong, STARTS) == pytest.approx([0.5, 0.25])
    far = metrics.option_probability(np.array([2000.0, 1.0]), np.array([2000.0, 2000.0, 3000.0, 3000.0, 3000.0]), STARTS)
    assert far == pytest.approx([1 / 3, 1.0])  # neither underflows


@given(st.floats(1e-3, 1), st.integers(1, 9))
def test_harmonic_mean_of_equal_numbers_is_the_number(value, count):
    assert metrics.harmonic_mean([value] * count) == pytest.approx(value)


def test_harmonic_mean_with_a_zero_is_zero():
    assert metrics.harmonic_mean([0.5, 0.0, 0.9]) == 0.0
    assert metrics.harmonic_mean([0.5, 0.25]) == pytest.approx(1 / 3)


def lcs(one, other):
    """Longest common subsequence, by the textbook."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def test_rouge_l_is_recall_of_the_reference():
    words = ["the", "cat", "sat", "on", "a", "mat", "near", "two", "dogs"]
    generator = np.random.default_rng(0)
    references = [" ".join(generator.choice(words, size=9)) for _ in range(20)]
    predictions = [" ".join(generator.choice(words, size=size)) for size in generator.integers(1, 15, size=20)]
    recall, f1 = metrics.rouge_l(predictions, references, stem=False)
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        common = lcs(prediction.split(), reference.split())
        assert recall[row] == pytest.approx(common / 9)
        assert f1[row] == pytest.approx(2 * common / (9 + len(prediction.split())))


def test_rouge_l_stems():
    recall, f1 = metrics.rouge_l(["she was writing books all day"], ["she writes book"])
    official = RougeScorer(["rougeL"], use_stemmer=True).score("she writes book", "she was writing books all day")["rougeL"]
    assert (recall[0], f1[0]) == (official.recall, official.fmeasure)
    assert recall[0] == 1.0
    assert metrics.rouge_l(["she was writing books"], ["she writes book"], stem=False)[0] == pytest.approx([1 / 3])


def test_exact_match_ignores_case_and_punctuation_only():
    assert metrics.exact_match(["  Paris. ", "Paris, France", "par is"], ["paris", "Paris", "paris"]).tolist() == [1, 0, 0]


HITS = np.array([1, 0, 1, 1, 1, 1, 0, 1, 0], dtype=bool)
HIT_STARTS = np.array([0, 4, 6, 9, 9])


def test_exact_memorisation_is_the_share_of_right_tokens():
    assert metrics.exact_memorisation(HITS, HIT_STARTS) == pytest.approx([0.75, 1.0, 1 / 3, 0.0])


def test_extraction_strength_is_the_share_of_the_final_right_stretch():
    assert metrics.extraction_strength(HITS, HIT_STARTS) == pytest.approx([0.5, 1.0, 0.0, 0.0])


@given(st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=6))
def test_extraction_strength_equals_its_definition(rows):
    starts = np.cumsum([0, *map(len, rows)])
    hits = np.array([hit for row in rows for hit in row], dtype=bool)
    expected = []
    for row in rows:
        k = next((k for k in range(len(row)) if all(row[k:])), len(row))
        expected.append(1 - k / len(row) if row else 0.0)
    assert metrics.extraction_strength(hits, starts) == pytest.approx(expected)


def test_min_k_takes_at_least_one_token_and_rounds_down():
    scores = np.array([-5.0, -1.0, -3.0, -2.0, -4.0, -7.0, -6.0])
    starts = np.array([0, 5, 7])
    assert metrics.min_k(scores, starts, 0.4) == pytest.approx([4.5, 7.0])
    assert metrics.min_k(scores, starts, 0.2) == pytest.approx([5.0, 7.0])
    assert metrics.min_k(scores, starts, 1.0) == pytest.approx([3.0, 6.5])


def test_standardised_scores_floor_the_variance():
    assert metrics.standardised(np.array([-2.0, -1.0]), np.array([-3.0, -1.5]), np.array([4.0, 0.0])) == pytest.approx(
        [0.5, 500.0]
    )


def test_member_auc_is_sklearns_with_the_holdout_as_positive():
    generator = np.random.default_rng(0)
    forget, holdout = generator.integers(0, 8, size=30) / 4, generator.integers(2, 9, size=20) / 4  # with ties
    labels = np.array([0] * 30 + [1] * 20)
    assert metrics.member_auc(forget, holdout) == pytest.approx(roc_auc_score(labels, np.concatenate([forget, holdout])))
    assert metrics.member_auc(forget, forget) == 0.5
    assert metrics.member_auc(np.zeros(3), np.ones(4)) == 1.0


def test_privleak_has_muses_sign():
    assert metrics.privleak(0.6, 0.6) == 0.0
    assert metrics.privleak(1.0, 0.5) == -100.0  # the forget set still stands out: under-unlearned
    assert metrics.privleak(0.0, 0.5) == 100.0
    assert metrics.privleak(0.7, 0.4) == pytest.approx(100 * ((1 - 0.7) - (1 - 0.4)) / (1 - 0.4))


def test_area_between_is_a_mean_gap_over_uneven_steps():
    assert metrics.area_between([0, 1, 10], [0.5, 0.5, 0.5], [0.2, 0.2, 0.2]) == pytest.approx(0.3)
    assert metrics.area_between([0, 1, 11], [0, 1, 1], [0, 0, 0]) == pytest.approx((0.5 + 10) / 11)


def test_transfer_rate_of_an_unchanged_model_is_the_svms_miss_rate():
    generator = np.random.default_rng(0)
    members, strangers = generator.normal(0.6, 1, size=(80, 4)), generator.normal(-0.6, 1, size=(80, 4))
    rate, missed = member_transfer_rate(members, strangers, members)
    assert rate == missed and 0 < missed < 0.5
    moved, same = member_transfer_rate(members, strangers, members - 50)
    assert moved == 1.0 and same == missed
