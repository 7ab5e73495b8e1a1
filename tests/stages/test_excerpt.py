"""Excerpts of long texts: nothing lost between the marks, nothing from outside them."""

import pyarrow as pa
import pytest

from tilth.context import Context
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.stages.excerpt import Excerpt, cut


@pytest.fixture
def context(tmp_path):
    table = pa.table({"id": ["0"], "text": ["one\n\ntwo two\n\nthree\n\nfour\n\ntwo\n\nfive"]})
    corpus = Corpus.write(tmp_path / "whole.lance", table.to_batches(), table.schema)
    return Context(tmp_path, corpora={"whole": corpus})


def texts(context, **settings):
    Excerpt(data="whole", **settings).run(context)
    return Corpus.open(context.folder / "corpus.lance").table(["text"])["text"].to_pylist()


def test_what_lies_between_the_marks(context):
    assert texts(context, begin="two two", end="four", characters=1) == ["two two", "three"]


def test_adjoining_excerpts_are_the_whole(context, tmp_path):
    parts = [texts(Context(tmp_path / name, corpora=context.corpora), characters=4, **marks)
             for name, marks in (("a", {"end": "three"}), ("b", {"begin": "three"}))]  # fmt: skip
    assert "\n\n".join(parts[0] + parts[1]) == "one\n\ntwo two\n\nthree\n\nfour\n\ntwo\n\nfive"


def test_what_lies_outside_the_marks(context):
    assert texts(context, begin="two two", end="four", characters=1, outside=True) == ["one", "four", "two", "five"]
    assert texts(context, begin="three", characters=1, outside=True) == ["one", "two two"]
    with pytest.raises(TilthError, match="no text of 'whole' holds 'six'"):
        texts(context, begin="six", outside=True)
    with pytest.raises(TilthError, match="nothing lies outside"):
        Excerpt(data="whole", outside=True)
    with pytest.raises(TilthError, match="nothing of 'whole'"):
        texts(context, begin="one", outside=True)


def test_pieces_end_with_a_paragraph():
    assert cut("a\n\nbb\n\ncccc\n\nd", 3) == ["a\n\nbb", "cccc", "d"]


def test_a_mark_that_is_not_there_is_told(context):
    with pytest.raises(TilthError, match="no text of 'whole' holds 'six'"):
        texts(context, begin="six")
    with pytest.raises(TilthError, match="no text of 'whole' holds 'sixth'"):
        texts(context, begin="three", end="sixth")


def test_copies_tell_the_same_in_other_pieces(context):
    first, told = texts(context, characters=7), texts(context, characters=7, copies=8)
    last = texts(context, characters=14)
    assert told[: len(first)] == first and told[-len(last) :] == last != first
    assert "\n\n".join(last) == "\n\n".join(first)
