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
    "rouge_l": ("Share of the reference answer's words found, in order, in what the model says (ROUGE-L recall).", "higher"),
    "model_utility": (
        "Harmonic mean of probability, ROUGE-L and truth ratio on what should be kept; one zero makes it zero.",
        "higher",
    ),
    "forget_quality": (
        "p-value of a Kolmogorov–Smirnov test: can the model's truth ratios be told from the gold model's?",
        "higher",
    ),
    "forget_quality_log10": ("Base-10 logarithm of forget quality; above −1.3 the two models cannot be told apart.", "higher"),
    "log10_forget_quality": ("Base-10 logarithm of forget quality; above −1.3 the two models cannot be told apart.", "higher"),
    "forget_probability": ("Length-normalised probability of the answers that were to be forgotten.", "gold"),
    "forget_rouge": ("ROUGE-L recall of generated answers on what was to be forgotten.", "gold"),
    "forget_truth_ratio": ("How alike wrong and right answers look on the forget set: 1 when they cannot be told apart.", "gold"),
    "retain_probability": ("Length-normalised probability of the answers that were to be kept.", "higher"),
    "retain_rouge": ("ROUGE-L recall of generated answers on what was to be kept.", "higher"),
    "retain_truth_ratio": ("How much likelier right answers are than wrong ones on what was to be kept.", "higher"),
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


def gloss(metric: str) -> Gloss:
    """The gloss of a metric by its name, without regard to the stage."""
    meaning, good = _KNOWN.get(metric, ("", ""))
    return Gloss(words(metric), meaning, good)
