import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.curate.characters import LETTER, SPACE, Characters, by_pieces, classes, mix

classes()  # made once, slower than a test's deadline
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=30), st.text("ab é\n😀", max_size=30)), max_size=12)


@given(TEXTS)
def test_texts_survive_the_round_trip_whatever_they_hold(texts):
    characters = Characters.of(pa.array(texts, pa.string()))
    assert characters.array().to_pylist() == [text or "" for text in texts]
    assert np.diff(characters.starts).tolist() == [len(text or "") for text in texts]


@given(TEXTS, st.integers(0, 4), st.integers(0, 6))
def test_a_slice_of_an_array_reads_as_the_slice(texts, begin, length):
    array = pa.array(texts, pa.large_string()).slice(begin, length)
    assert Characters.of(array).array().to_pylist() == [text or "" for text in array.to_pylist()]


@given(TEXTS)
def test_words_are_those_of_split(texts):
    characters = Characters.of(pa.array(texts, pa.string()))
    words = characters.words()
    # str.split also splits at U+001C to U+001F, which Unicode calls control characters
    expected = [
        "".join(c if unicodedata.category(c) != "Cc" or c in "\t\n\v\f\r\x85" else "x" for c in text or "").split()
        for text in texts
    ]
    assert characters.total(words).tolist() == [len(one) for one in expected]
    assert words.lengths.tolist() == [len(word) for one in expected for word in one]


@given(TEXTS)
def test_equal_spans_have_equal_hashes_and_others_do_not(texts):
    characters = Characters.of(pa.array(texts, pa.string()))
    spans = characters.spans(characters.codes != 0x0A)
    lines = [line for text in texts for line in (text or "").split("\n") if line]
    hashes = characters.hashes(spans).tolist()
    assert len(hashes) == len(lines)
    assert len(set(hashes)) == len(set(lines))
    assert all((hashes[0] == value) == (lines[0] == line) for value, line in zip(hashes, lines))


def test_hashes_are_the_same_in_another_batch():
    one = Characters.of(pa.array(["needle"]))
    other = Characters.of(pa.array(["haystack é ", "", "needle"]))
    assert one.hashes(one.words())[0] == other.hashes(other.words())[-1]


def test_runs_do_not_cross_documents():
    characters = Characters.of(pa.array(["ab", "", "cd"]))
    assert len(characters.spans(np.ones(4, bool))) == 2
    assert characters.spans(np.ones(4, bool)).document.tolist() == [0, 2]


def test_classes_follow_unicode():
    assert [classes()[ord(sign)] for sign in "é中\u0301"] == [LETTER] * 3
    assert [classes()[ord(sign)] for sign in "\t\n\u00a0\u3000"] == [SPACE] * 4


def test_mix_is_a_bijection_on_a_sample_and_moves_half_of_the_bits():
    values = np.arange(10_000, dtype=np.uint64)
    assert len(np.unique(mix(values))) == 10_000
    moved = np.bitwise_count(mix(values) ^ mix(values ^ np.uint64(1))).mean()
    assert moved == pytest.approx(32, abs=0.5)


def test_pieces_join_to_the_whole():
    texts = pa.array(["x" * 300_000, None, "", "y" * 600_000, "z", "é" * 200_000])
    assert by_pieces(lambda part: Characters.of(part).array(), texts).to_pylist() == [text or "" for text in texts.to_pylist()]
    assert len(by_pieces(lambda part: Characters.of(part).array(), pa.array([], pa.string()))) == 0
