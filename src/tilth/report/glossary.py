"""What the numbers mean: one line per metric and which direction is good.

Notable: keyed by the metric's own name, whichever stage reports it; a metric that is not here is shown without a gloss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tilth.report.words import words

Good = Literal["higher", "lower", "gold", "half", ""]

ARROWS: dict[Good, tuple[str, str]] = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "gold": ("≈", "should match the gold model, which never saw the forget set"),
    "half": ("½", "one half is ideal: members and strangers cannot be told apart"),
    "": ("", ""),
}


@dataclass(frozen=True)
class Gloss:
    """title: the metric for people; meaning: one line, empty when unknown; good: which direction is."""

    title: str
    meaning: str = ""
    good: Good = ""


_KNOWN: dict[str, tuple[str, Good]] = {
    "loss": ("Mean loss at the end of training, as the objective defines it.", "lower"),
    "held_out_loss": ("Loss on text the model was not trained on, in nats per token.", "lower"),
    "perplexity": ("How many equally likely tokens the model hesitates between on text it has not seen.", "lower"),
    "ngram_perplexity": ("The same for an interpolated Kneser-Ney n-gram model of the same training text.", "lower"),
    "bits_per_byte": ("Information the model needs per byte of unseen text; comparable across tokenisers.", "lower"),
    "bits_per_character": ("Information the model needs per character of unseen text.", "lower"),
    "nats_per_token": ("Mean negative log-probability of a token of unseen text.", "lower"),
    "accuracy": ("Share of examples whose class is predicted correctly.", "higher"),
    "macro_f1": ("F1 score averaged over classes, so that rare classes count as much as frequent ones.", "higher"),
    "f1": ("Harmonic mean of precision and recall.", "higher"),
    "exact_match": ("Share of answers that are the reference word for word.", "higher"),
    "rouge": ("Share of the reference answer's words found, in order, in what the model says (ROUGE-L recall).", "higher"),
    "model_utility": (
        "Harmonic mean of probability, ROUGE-L and truth ratio on what should be kept; one zero makes it zero.",
        "higher",
    ),
    "forget_quality": (
        "p-value of a Kolmogorov–Smirnov test: can the model's truth ratios be told from the gold model's?",
        "higher",
    ),
    "log10_forget_quality": ("Base-10 logarithm of forget quality; above −1.3 the two models cannot be told apart.", "higher"),
    "exact_memorisation": ("Share of the answer's tokens that are the model's first choice, given those before.", "lower"),
    "extraction_strength": ("How small a part of the answer is enough for the model to say the rest.", "lower"),
    "loss_auc": ("Membership inference by loss: how well an attacker tells forgotten rows from rows never seen.", "half"),
    "min_k_auc": ("Membership inference by the least likely tokens (Min-K %).", "half"),
    "min_k_plus_plus_auc": ("Membership inference by the least likely tokens, normalised (Min-K %++).", "half"),
    "zlib_auc": ("Membership inference by loss over compressed length.", "half"),
    "privacy_leak": ("Distance of the membership attack's success from the gold model's, in per cent; 0 is ideal.", "gold"),
    "area": ("How quickly what was forgotten comes back when the model is trained on a part of it.", "lower"),
    "tokens_per_second": ("Training speed, start-up included.", "higher"),
    "kept": ("Rows that are left.", ""),
    "removed": ("Rows that were taken out, each with its reason.", ""),
    "rows": ("Rows that went in.", ""),
    "tokens": ("Tokens seen in training, repeats included.", ""),
    "parameters": ("Weights of the network.", ""),
    "vocabulary": ("Different tokens the tokeniser knows.", ""),
    "steps": ("Optimiser steps.", ""),
}


# Of each set of an unlearning audit: meaning on the forget set (to match the gold model), meaning on what is kept.
_OF_SETS: dict[str, tuple[str, str]] = {
    "probability": ("Length-normalised probability of the answers that were to be forgotten.", "Length-normalised probability of right answers."),
    "rouge": ("Share of the forgotten answers' words that the model still says, in order (ROUGE-L recall).", "Share of the right answers' words that the model says, in order (ROUGE-L recall)."),
    "rouge_f1": ("The same as F1, which punishes long answers.", "The same as F1, which punishes long answers."),
    "truth_ratio": ("How alike right and wrong answers look on the forget set; 1 when they cannot be told apart.", "How much likelier right answers are than wrong ones; 1 at best, 0 when they are not."),
}  # fmt: skip
_SETS = ("forget", "retain", "real_authors", "world_facts")

FIRST = ("forget_quality", "model_utility", "forget_probability", "retain_probability", "forget_rouge", "retain_rouge")
"""Metrics that an audit shows before the others."""


def gloss(metric: str) -> Gloss:
    """The gloss of a metric by its name, without regard to the stage."""
    for of_set in _SETS:
        kind = metric.removeprefix(of_set + "_")
        if kind != metric and kind in _OF_SETS:
            forgotten, kept = _OF_SETS[kind]
            return Gloss(words(metric), forgotten, "gold") if of_set == "forget" else Gloss(words(metric), kept, "higher")
        if kind != metric and metric not in _KNOWN:
            meaning, good = _KNOWN.get(kind, ("", ""))
            return Gloss(words(metric), meaning, good)
    meaning, good = _KNOWN.get(metric, ("", ""))
    return Gloss(words(metric), meaning, good)
