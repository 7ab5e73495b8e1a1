"""Interpolated Kneser-Ney n-gram model over token ids: the yardstick a language model must beat.

Notable: no Python per token; an n-gram is an integer (number of its context x vocabulary + its word) and counting is
sorting; a context is an integer in the same way, built up token by token, so no key ever overflows and nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHURCH_GALE = 0.75  # the discount where n1 or n2 is 0 and the estimate is undefined or 1


@dataclass(frozen=True)
class Order:
    """Counts of one order k. keys (n-grams,) sorted: context * vocabulary + word; counts (n-grams,).

    contexts (contexts,) sorted: keys of contexts of k - 1 tokens; totals, types (contexts,): sum and number of its counts.
    """

    contexts: np.ndarray
    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    types: np.ndarray
    discount: float


class KneserNey:
    """P_k(w|h) = max(c(hw) - D_k, 0) / c(h.) + D_k N1+(h.) / c(h.) P_{k-1}(w|h'),   P_0 = 1 / vocabulary

    c: counts at the highest order, below it the number of distinct tokens seen before the n-gram (continuation counts);
    h' is h without its first token (Kneser and Ney 1995; Chen and Goodman 1998, section 2.7; the interpolated form).
    D_k = n1 / (n1 + 2 n2) unless given, with n1, n2 the number of n-grams of order k counted once and twice.

    Every document starts in a context of `start` tokens, which is never predicted. Unlike nltk's KneserNeyInterpolated,
    the unigrams are interpolated with the uniform distribution, so unseen tokens have a probability; `discounts` of 0
    for the unigrams gives nltk's.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        *,
        vocabulary: int,
        start: int,
        order: int = 5,
        discounts: Sequence[float] | None = None,
    ) -> None:
        """tokens (n,): ids below `vocabulary`, documents one after another; starts (documents + 1,): where each begins."""
        self.vocabulary, self.start, self.order = vocabulary, start, order
        tokens = np.asarray(tokens, dtype=np.int64)
        history = _history(tokens, starts, order, start)
        context = np.zeros(len(tokens), dtype=np.int64)
        tables = [np.zeros(1, dtype=np.int64)]
        suffix = [np.zeros(1, dtype=np.int64)]  # per context of k tokens: number of the context without its first token
        for previous in history:
            keys = previous * len(tables[-1]) + context
            shorter = len(tables[-1])
            table, context = np.unique(keys, return_inverse=True)
            tables.append(table)
            suffix.append(table % shorter)
        keys, counts = np.unique(context * vocabulary + tokens, return_counts=True)
        orders: list[Order] = []
        for k in range(order, 0, -1):
            owner = keys // vocabulary
            totals = np.bincount(owner, weights=counts, minlength=len(tables[k - 1]))
            types = np.bincount(owner, minlength=len(tables[k - 1]))
            discount = _discount(counts) if discounts is None else discounts[k - 1]
            orders.append(Order(tables[k - 1], keys, counts, totals, types, discount))
            if k > 1:
                keys, counts = np.unique(suffix[k - 1][owner] * vocabulary + keys % vocabulary, return_counts=True)
        self.orders = orders[::-1]

    def log_probabilities(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """log P of each token given the tokens before it in its document, in nats: float64 (n,)."""
        tokens = np.asarray(tokens, dtype=np.int64)
        probability = np.full(len(tokens), 1 / self.vocabulary)
        context = np.zeros(len(tokens), dtype=np.int64)  # number of the context, -1 once it was never seen
        history = [None, *_history(tokens, starts, self.order, self.start)]
        for k, order in enumerate(self.orders):
            previous = history[k]
            if previous is not None:
                shorter = len(self.orders[k - 1].contexts)
                context = np.where(context < 0, -1, _find(order.contexts, previous * shorter + context))
            seen = context >= 0
            number = context[seen]
            at = _find(order.keys, number * self.vocabulary + tokens[seen])
            count = np.where(at < 0, 0, order.counts[at])
            left = order.discount * order.types[number] * probability[seen]
            probability[seen] = (np.maximum(count - order.discount, 0) + left) / order.totals[number]
        with np.errstate(divide="ignore"):
            return np.log(probability)


def _history(tokens: np.ndarray, starts: np.ndarray, order: int, start: int) -> list[np.ndarray]:
    """For j = 1 .. order - 1 the token j places before each token, `start` before the beginning of its document."""
    place = np.arange(len(tokens)) - np.repeat(starts[:-1], np.diff(starts))
    found = []
    for j in range(1, order):
        before = np.full(len(tokens), start, dtype=np.int64)
        before[j:] = tokens[:-j]
        found.append(np.where(place < j, start, before))
    return found


def _discount(counts: np.ndarray) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else _CHURCH_GALE


def _find(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each key stands in the sorted table, -1 where it is not."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, at, -1)
