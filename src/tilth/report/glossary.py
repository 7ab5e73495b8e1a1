"""What the numbers mean: one line per metric and which direction is good.

Notable: keyed by the metric's own name, whichever stage reports it; a metric that is not here is shown without a gloss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tilth.report.words import words

Good = Literal["higher", "lower", "gold", "half", "zero", ""]

ARROWS: dict[Good, tuple[str, str]] = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "gold": ("≈", "should match the gold model, which never saw the forget set"),
    "half": ("½", "one half is ideal: what was seen and what was not cannot be told apart"),
    "zero": ("0", "zero is ideal"),
    "": ("", ""),
}
"""direction -> (sign, its meaning)"""


@dataclass(frozen=True)
class Gloss:
    """title: the metric for people; meaning: one line, empty when unknown; good: which direction is."""

    title: str
    meaning: str = ""
    good: Good = ""


_GLOSSES: list[tuple[str, str, Good]] = [
    # language modelling
    ("perplexity", "How many equally likely tokens the model hesitates between on text it has not seen.", "lower"),
    ("ngram_perplexity", "The same for an interpolated Kneser-Ney n-gram model of the same training text.", "lower"),
    (
        "bits_per_(byte|character)",
        "Information needed per byte or character of unseen text; comparable across tokenisers.",
        "lower",
    ),
    ("ngram_bits_per_(byte|character)", "The same for the n-gram model.", "lower"),
    ("loss", "Mean negative log-probability of a token in nats, or as the objective defines it.", "lower"),
    ("held_out_loss", "Loss on text the model was not trained on, in nats per token.", "lower"),
    # tasks
    ("accuracy", "Share of examples whose class is predicted correctly.", "higher"),
    ("train_accuracy", "The same on the examples that were learnt from.", ""),
    ("macro_(f1|precision|recall)", "Averaged over classes, so that rare classes count as much as frequent ones.", "higher"),
    ("f1", "Harmonic mean of precision and recall.", "higher"),
    ("exact_match", "Share of answers that are the right one word for word.", "higher"),
    ("rouge|rouge_l", "Share of the right answer's words that the model says, in order (ROUGE-L recall).", "higher"),
    ("rouge_f1", "The same as F1, which punishes long answers.", "higher"),
    # unlearning: what is gone
    ("forget_quality", "p-value of a Kolmogorov–Smirnov test: can its truth ratios be told from the gold model's?", "higher"),
    ("log10_forget_quality", "Base-10 logarithm of forget quality; above −1.3 the two cannot be told apart.", "higher"),
    ("forget_probability", "Length-normalised probability of the answers that were to be forgotten.", "gold"),
    ("forget_rouge", "Share of the forgotten answers' words that the model still says, in order (ROUGE-L recall).", "gold"),
    ("forget_rouge_f1", "The same as F1, which punishes long answers.", "gold"),
    ("forget_truth_ratio", "How alike right and wrong answers look on the forget set; 1 when they cannot be told apart.", "gold"),
    ("forget_exact_memorisation", "Share of the forgotten answers' tokens that are the model's first choice.", "gold"),
    (
        "forget_extraction_strength",
        "How small a beginning of a forgotten answer is enough to make the model say the rest.",
        "gold",
    ),
    # unlearning: what is left
    (
        "model_utility",
        "Harmonic mean of probability, ROUGE-L and truth ratio on what was to be kept; one zero makes it 0.",
        "higher",
    ),
    ("(retain|real_authors|world_facts)_probability", "Length-normalised probability of right answers.", "higher"),
    (
        "(retain|real_authors|world_facts)_rouge",
        "Share of right answers' words that the model says, in order (ROUGE-L recall).",
        "higher",
    ),
    ("(retain|real_authors|world_facts)_rouge_f1", "The same as F1, which punishes long answers.", "higher"),
    (
        "(retain|real_authors|world_facts)_truth_ratio",
        "How much likelier right answers are than wrong ones; 0 when not.",
        "higher",
    ),
    # attacks
    ("gold_.*_auc", "The same attack on the gold model.", ""),
    ("loss_auc", "Attack: tell forgotten rows from rows never seen by the model's loss.", "half"),
    ("zlib_auc", "Attack by loss over compressed length.", "half"),
    ("(privleak_)?min_k_auc", "Attack by the least likely tokens (Min-K %).", "half"),
    ("min_k_plus_plus_auc", "Attack by the least likely tokens, standardised (Min-K %++).", "half"),
    ("reference_auc", "Attack by loss relative to a reference model.", "half"),
    (
        "privleak",
        "Attack compared with the gold model, in per cent: negative, too little was unlearned; positive, too much.",
        "zero",
    ),
    (
        "(probability|rouge)_area",
        "How much faster than to the gold model it comes back when a part of it is shown again.",
        "lower",
    ),
    (r"(probability|rouge)_\d+", "On forgotten rows not shown, after so many steps on those that were.", "gold"),
    ("collapse_step", "First step at which utility falls below one half; the last step if it never does.", "higher"),
    ("collapsed", "1 if utility fell below one half.", "lower"),
    ("drift|drift_halfway", "Distance of the weights from where they started, at the end and halfway.", "lower"),
    (
        "drift_growth",
        "Drift at the end over drift halfway: 2 when it grows in proportion to steps, near 1 when it stops.",
        "lower",
    ),
    ("utility", "Accuracy on what was to be kept.", "higher"),
    ("utility_before", "The same before anything was forgotten.", ""),
    ("forget_accuracy", "Accuracy on what was to be forgotten.", "lower"),
    # counts
    ("tokens", "Tokens that were read.", ""),
    ("tokens_per_second", "Training speed, start-up included.", "higher"),
]

FIRST = (
    "forget_quality", "model_utility", "forget_probability", "retain_probability", "forget_rouge", "retain_rouge",
    "perplexity", "ngram_perplexity", "accuracy", "exact_match",
)  # fmt: skip
"""Metrics that a table shows before the others."""


def gloss(metric: str) -> Gloss:
    """The gloss of a metric by its name, without regard to the stage."""
    for pattern, meaning, good in _GLOSSES:
        if re.fullmatch(pattern, metric):
            return Gloss(words(metric), meaning, good)
    return Gloss(words(metric))
