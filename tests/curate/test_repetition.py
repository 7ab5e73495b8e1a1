from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.frames import fates, frame
from tilth.curate.characters import Characters
from tilth.curate.repetition import Repetition, Words

SENTENCES = st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=25)


def words_of(*texts: str) -> Words:
    return Words(Characters.of(pa.array(texts)))


@settings(max_examples=150)
@given(SENTENCES, SENTENCES, st.integers(1, 5))
def test_duplicate_ngrams_by_definition(first, second, n):
    expected = []
    for words in (first, second):
        seen, covered = set(), set()
        for place in range(len(words) - n + 1):
            gram = tuple(words[place : place + n])
            covered |= set(range(place, place + n)) if gram in seen else set()
            seen.add(gram)
        expected.append(sum(len(words[place]) for place in covered))
    assert words_of(" ".join(first), " ".join(second)).duplicated(n).tolist() == expected


@settings(max_examples=150)
@given(SENTENCES, SENTENCES, st.integers(1, 4))
def test_the_top_ngram_by_definition(first, second, n):
    expected = []
    for words in (first, second):
        counts = Counter(tuple(words[place : place + n]) for place in range(len(words) - n + 1))
        most = max(counts.values(), default=0)
        covered = max((sum(map(len, gram)) * most for gram, count in counts.items() if count == most and most > 1), default=0)
        expected.append(min(covered, sum(map(len, words))))
    assert words_of(" ".join(first), " ".join(second)).top(n).tolist() == expected


def test_repeated_paragraphs_and_phrases_are_removed_and_prose_kept():
    prose = "Every morning she walked to the harbour, counted boats, wrote their names down, then went home for bread."
    paragraphs = "One thing only.\n\nOne thing only.\n\nSomething else is said here."
    phrases = "buy now cheap " * 20
    outcome = fates(Repetition(), frame([prose, paragraphs, phrases, "", None]))
    assert [reason is None for reason in outcome.values()] == [True, False, False, True, True]
    assert outcome["1"] == "repetition: share of duplicate paragraphs 0.333, above 0.3"
    assert "most frequent 2-gram" in outcome["2"]


def test_thresholds_can_be_set_and_left_out():
    text = frame(["x y x y x y"])
    assert fates(Repetition(top_ngrams={}, duplicate_ngrams={}), text)["0"] is None
    assert fates(Repetition(top_ngrams={2: 1.0}, duplicate_ngrams={}), text)["0"] is None
    said = fates(Repetition(top_ngrams={}, duplicate_ngrams={2: 0.5}), text)["0"]
    assert said == pytest.approx("repetition: share of duplicate 2-grams 0.667, above 0.5")
