import numpy as np
import pytest
from nltk.lm import KneserNeyInterpolated
from nltk.util import everygrams

from tilth.evaluate.ngram import KneserNey

VOCABULARY, START = 7, 0


def documents(seed, count=6, longest=12):
    """Token ids 1 .. VOCABULARY - 1, with frequent ones and empty documents, ended by START."""
    generator = np.random.default_rng(seed)
    bodies = [
        1 + np.minimum(generator.geometric(0.4, size=size) - 1, VOCABULARY - 2)
        for size in generator.integers(0, longest, size=count)
    ]
    return [[*body.tolist(), START] if len(body) else [] for body in bodies]


def flat(texts):
    return np.array([token for text in texts for token in text], dtype=np.int64), np.cumsum([0, *map(len, texts)])


class ByTheBook:
    """Interpolated Kneser-Ney with dictionaries, one n-gram at a time."""

    def __init__(self, texts, order):
        self.order = order
        highest = {}
        for text in texts:
            line = [START] * (order - 1) + text
            for at in range(order - 1, len(line)):
                gram = tuple(line[at - order + 1 : at + 1])
                highest[gram] = highest.get(gram, 0) + 1
        self.counts = {order: highest}
        for k in range(order - 1, 0, -1):
            self.counts[k] = {}
            for gram in self.counts[k + 1]:
                self.counts[k][gram[1:]] = self.counts[k].get(gram[1:], 0) + 1
        self.discount = {}
        for k, counts in self.counts.items():
            once, twice = (sum(c == n for c in counts.values()) for n in (1, 2))
            self.discount[k] = once / (once + 2 * twice) if once and twice else 0.75

    def probability(self, word, context):
        if context is None:
            return 1 / VOCABULARY
        k = len(context) + 1
        lower = self.probability(word, context[1:] if context else None)
        following = {gram: c for gram, c in self.counts[k].items() if gram[:-1] == context}
        if not following:
            return lower
        count, total = following.get((*context, word), 0), sum(following.values())
        return max(count - self.discount[k], 0) / total + self.discount[k] * len(following) / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_kneser_ney_by_the_book(order):
    train, test = documents(0), documents(1)
    book = ByTheBook(train, order)
    model = KneserNey(*flat(train), vocabulary=VOCABULARY, start=START, order=order)
    expected = [
        np.log(book.probability(word, tuple(([START] * (order - 1) + text)[at : at + order - 1])))
        for text in test
        for at, word in enumerate(text)
    ]
    assert model.log_probabilities(*flat(test)) == pytest.approx(expected, abs=1e-12)


def test_equals_nltk_on_bigrams():
    """Bigrams without a discount on the unigrams, where nltk's formula is the same: raw counts above continuation counts."""
    train = [text for text in documents(2, count=8) if text]
    peer = KneserNeyInterpolated(order=2, discount=0.6)
    lines = [["start", *map(str, text)] for text in train]
    peer.fit(
        [[gram for gram in everygrams(line, max_len=2) if gram != ("start",)] for line in lines],
        {str(t) for text in train for t in text},
    )
    model = KneserNey(*flat(train), vocabulary=VOCABULARY, start=START, order=2, discounts=[0.0, 0.6])
    seen = sorted({token for text in train for token in text})
    for first in seen:
        if first == START:
            continue  # in the model the start and the end of a document share an id
        ours = model.log_probabilities(*flat([[first, word] for word in seen]))[1::2]
        theirs = [peer.score(str(word), [str(first)]) for word in seen]
        assert np.exp(ours) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("context", [[], [1], [2, 1], [6, 6, 6], [1, 1, 2, 3, 1]])
def test_probabilities_sum_to_one(context):
    model = KneserNey(*flat(documents(3)), vocabulary=VOCABULARY, start=START, order=4)
    continued = [[*context, word] for word in range(VOCABULARY)]
    last = np.cumsum([len(text) for text in continued]) - 1
    assert np.exp(model.log_probabilities(*flat(continued))[last]).sum() == pytest.approx(1, abs=1e-12)


def test_unseen_tokens_have_a_probability():
    model = KneserNey(*flat([[1, 2, 1, 2, 3, START]]), vocabulary=1000, start=START, order=3)
    unseen = model.log_probabilities(*flat([[999, 998]]))
    assert np.isfinite(unseen).all() and (unseen < np.log(1 / 1000) + 1e-9).all()


def test_documents_do_not_see_each_other():
    model = KneserNey(*flat(documents(4)), vocabulary=VOCABULARY, start=START, order=3)
    one, other = [1, 2, 1], [2, 1, 3]
    together = model.log_probabilities(*flat([one, [], other]))
    apart = np.concatenate([model.log_probabilities(*flat([one])), model.log_probabilities(*flat([other]))])
    assert np.array_equal(together, apart)


def test_learns_what_repeats():
    cycle = np.tile(np.arange(1, 6), 200)
    model = KneserNey(cycle, np.array([0, len(cycle)]), vocabulary=6, start=0, order=3)
    assert np.exp(-model.log_probabilities(cycle, np.array([0, len(cycle)])).mean()) < 1.05
