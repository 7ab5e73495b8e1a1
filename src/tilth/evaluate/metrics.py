"""The numbers of the unlearning protocol as pure functions of per-example statistics.

Notable: truth ratios are kept as logarithms (a collapsed model's ratios overflow, and every aggregate is a function of the
logarithm); a score of membership is lower for likely members, and an AUC is above 0.5 when the forget set looks more like
members than the holdout does: one orientation everywhere, converted where another is reported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ks_2samp, rankdata

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_SMALLEST_LOG10 = -323.0  # of a p-value that underflows: JSON has no minus infinity


def answer_probability(average: np.ndarray) -> np.ndarray:
    """P(a|q)^(1/n) = exp(-average), average: nats per answer token (TOFU, arXiv 2401.06121, section 2.2.1)."""
    return np.exp(-average)


def option_probability(average: np.ndarray, wrong: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """p / (p + sum of the wrong options' p), p length-normalised (TOFU, arXiv 2401.06121, section 2.2.1).

    average (examples,): of the right answer; wrong: of all wrong answers, those of example i at starts[i]:starts[i + 1].
    """
    rivals = _log_sum_exp(-wrong, starts)
    return np.exp(-np.logaddexp(0.0, rivals + average))


def log_truth_ratio(average: np.ndarray, wrong: np.ndarray, starts: np.ndarray, *, wrong_mean: str = "geometric") -> np.ndarray:
    """log R of each example, R = mean wrong probability / probability of the (paraphrased) answer, length-normalised.

    TOFU, arXiv 2401.06121, eq. 1, which writes an arithmetic mean; every released code takes the geometric one (a mean of
    losses), so that is the default. average (examples,), wrong and starts as in `option_probability`.
    """
    counts = np.diff(starts)
    if wrong_mean == "geometric":
        return average - np.add.reduceat(wrong, starts[:-1]) / counts
    return average + _log_sum_exp(-wrong, starts) - np.log(counts)


def utility_truth_ratio(log_ratio: np.ndarray) -> float:
    """Mean of max(0, 1 - R): higher is better (TOFU code, get_truth_ratio aggregate of the utility sets)."""
    return float(np.clip(-np.expm1(np.minimum(log_ratio, 0.0)), 0.0, 1.0).mean())


def forget_truth_ratio(log_ratio: np.ndarray) -> float:
    """Mean of min(R, 1/R): 1 when right and wrong cannot be told apart. To be compared with the gold model's, not maximised."""
    return float(np.exp(-np.abs(log_ratio)).mean())


def forget_quality(log_ratio: np.ndarray, gold: np.ndarray) -> tuple[float, float]:
    """p-value of the two-sample Kolmogorov-Smirnov test between truth ratios, and its log10 (at least -323).

    TOFU, arXiv 2401.06121, section 2.2.2: two-sided, on R itself (the test is unchanged by monotone maps, so on log R);
    1 for the gold model itself, above 0.05 when the two cannot be told apart.
    """
    p = float(ks_2samp(log_ratio, gold).pvalue)
    return p, max(float(np.log10(p)), _SMALLEST_LOG10) if p > 0 else _SMALLEST_LOG10


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1 / v); 0 if any value is 0. Model utility is this over nine numbers (TOFU, arXiv 2401.06121, section 2.2.1)."""
    given = np.asarray(values, dtype=np.float64)
    return 0.0 if (given <= 0).any() else float(len(given) / (1 / given).sum())


def rouge_l(predictions: Sequence[str], references: Sequence[str], *, stem: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """ROUGE-L recall and F1 of each prediction against its reference (rouge_score; Porter stemming unless told otherwise)."""
    scorer = _scorer(stem)
    scores = [
        scorer.score(reference, prediction)["rougeL"] for prediction, reference in zip(predictions, references, strict=True)
    ]
    return np.array([score.recall for score in scores]), np.array([score.fmeasure for score in scores])


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """1.0 where both are the same words: case, punctuation and white space aside."""
    return np.array([_words(one) == _words(other) for one, other in zip(predictions, references, strict=True)], dtype=np.float64)


def exact_memorisation(hits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Share of answer tokens whose teacher-forced argmax is right, per example (MA of arXiv 2210.01504, eq. 2).

    hits (tokens,): of all examples, end of sequence left out; those of example i at starts[i]:starts[i + 1]. 0 without tokens.
    """
    right = np.concatenate([[0], np.cumsum(hits)])[starts]
    return np.diff(right) / np.maximum(np.diff(starts), 1)


def extraction_strength(hits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """1 - k/n, k the smallest position from which on all teacher-forced predictions are right; 0 if even the last is wrong.

    arXiv 2202.07646 as in open-unlearning's `extraction_strength`; arguments as in `exact_memorisation`.
    """
    position = np.arange(len(hits))
    last_miss = np.maximum.accumulate(np.concatenate([[-1], np.where(hits, -1, position)]))[starts[1:]]
    k = np.maximum(last_miss + 1 - starts[:-1], 0)
    return 1 - k / np.maximum(np.diff(starts), 1) - (np.diff(starts) == 0)


def ngram_overlap(made: Sequence[int], true: Sequence[int], size: int) -> float:
    """Share of the `size`-grams of `made` that occur in `true`; 0 where `made` is too short to have one.

    OVERLAP_n of arXiv 2210.01504, eq. 3, on token ids; extraction likelihood is its mean over the positions a text is cut at.
    """
    grams = [tuple(made[start : start + size]) for start in range(len(made) - size + 1)]
    known = {tuple(true[start : start + size]) for start in range(len(true) - size + 1)}
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def min_k(token_scores: np.ndarray, starts: np.ndarray, fraction: float) -> np.ndarray:
    """Minus the mean of the lowest `fraction` of each example's token scores, max(1, floor(fraction n)) of them.

    With log-probabilities this is Min-K% (arXiv 2310.16789, eq. 1), with `standardised` ones Min-K%++ (arXiv 2404.02936, eq. 3).
    Lower: more like a member. 0 for an example without tokens.
    """
    counts = np.diff(starts)
    example = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((token_scores, example))  # within each example from the lowest
    rank = np.arange(len(token_scores)) - starts[example]
    taken = np.maximum(1, np.floor(fraction * counts + 1e-9)).astype(np.int64)
    chosen = rank < taken[example]
    sums = np.bincount(example[chosen], weights=token_scores[order][chosen], minlength=len(counts))
    return np.where(counts > 0, -sums / taken, 0.0)


def standardised(log_probability: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(log p(x_t) - mu_t) / sigma_t with mu, sigma of log p under the model's own distribution (arXiv 2404.02936, eq. 3).

    The variance is floored at 1e-6, as in open-unlearning's code.
    """
    return (log_probability - mean) / np.sqrt(np.maximum(variance, 1e-6))


def member_auc(forget: np.ndarray, holdout: np.ndarray) -> float:
    """Chance that a forget example scores lower (more like a member) than a holdout one; ties count half.

    1: the forget set stands out as known, 0.5: no difference. The Mann-Whitney statistic over its number of pairs.
    """
    ranks = rankdata(np.concatenate([forget, holdout]))[len(forget) :]
    pairs = len(forget) * len(holdout)
    return float((ranks.sum() - len(holdout) * (len(holdout) + 1) / 2) / pairs)


def privleak(auc: float, gold_auc: float) -> float:
    """100 ((1 - auc) - (1 - gold_auc)) / (1 - gold_auc), both AUCs as `member_auc` gives them (MUSE, arXiv 2407.06460, eq. 5).

    0: like the gold model; strongly negative: under-unlearned; strongly positive: over-unlearned, which also gives away.
    """
    return 100 * (gold_auc - auc) / max(1 - gold_auc, 1e-10)


def area_between(steps: Sequence[float], curve: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float:
    """Signed area between two curves over `steps`, by trapezia, divided by the span of steps: a mean difference."""
    if len(steps) < 2:
        return float(curve[0] - other[0])
    gap = np.asarray(curve, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return float(np.trapezoid(gap, steps) / (steps[-1] - steps[0]))


@cache
def _scorer(stem: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: slow to import, and only generation needs it

    return RougeScorer(["rougeL"], use_stemmer=stem)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _log_sum_exp(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """log sum exp of each stretch starts[i]:starts[i + 1], none of them empty."""
    highest = np.maximum.reduceat(values, starts[:-1])
    return highest + np.log(np.add.reduceat(np.exp(values - np.repeat(highest, np.diff(starts))), starts[:-1]))
