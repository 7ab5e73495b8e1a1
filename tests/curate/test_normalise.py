import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.frames import frame
from tilth.curate.normalise import Normalise
from tilth.errors import TilthError

AWKWARD = st.text(
    st.sampled_from("ae\u0301\u0323\n\r\t \u00a0\u2000\x00\x01\x0b\x85\u2028\ufeffé한\u1112\u1161\u11ab\U0001f600"), max_size=25
)


def normalised(text, **settings):
    return Normalise(**settings).normalised(pa.array([text], pa.string())).to_pylist()[0]


@settings(max_examples=300)
@given(
    st.lists(st.one_of(AWKWARD, st.text(max_size=30)), min_size=1, max_size=5), st.integers(0, 2), st.booleans(), st.booleans()
)
def test_twice_is_once(texts, blank_lines, strip, trailing_space):
    step = Normalise(blank_lines=blank_lines, strip=strip, trailing_space=trailing_space)
    once = step.normalised(pa.array(texts, pa.string()))
    assert step.normalised(once).equals(once)


@given(st.lists(AWKWARD, min_size=1, max_size=5))
def test_a_text_does_not_depend_on_its_neighbours(texts):
    together = Normalise().normalised(pa.array(texts, pa.string())).to_pylist()
    assert together == [normalised(text) for text in texts]


@given(AWKWARD)
def test_the_result_is_what_the_settings_promise(text):
    result = normalised(text)
    assert unicodedata.is_normalized("NFC", result)
    assert not any(unicodedata.category(sign) == "Cc" and sign not in "\n\t" for sign in result)
    assert all(line == line.rstrip() for line in result.split("\n"))
    assert "\n\n\n\n" not in result and result == result.strip("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\x0bd\x85e\u2028f", "a\nb\nc\nd\ne\nf"),
        ("a \t\nb\u00a0\n  c  ", "a\nb\n  c"),
        ("e\x00\u0301", "é"),
        ("\ufeffa\x07b", "ab"),
        ("\n\n a\n\n\n\n\nb\n\n", " a\n\n\nb"),
        ("a\u200db", "a\u200db"),
        ("", ""),
        (None, None),
    ],
)
def test_by_example(text, expected):
    assert normalised(text) == expected


def test_each_part_can_be_left_out():
    text = "e\u0301\x00 \r\n\n\n\n\n"
    nothing = {
        "controls": False,
        "unicode": False,
        "line_ends": False,
        "trailing_space": False,
        "blank_lines": None,
        "strip": False,
    }
    assert normalised(text, **nothing) == text
    assert normalised(text, **{**nothing, "unicode": True}) == "é\x00 \r\n\n\n\n\n"
    assert normalised(text, **{**nothing, "blank_lines": 0}) == "e\u0301\x00 \r\n"
    assert normalised("\n\n\na", **{**nothing, "blank_lines": 1}) == "\na"


def test_only_the_named_column_changes_and_a_wrong_name_is_told():
    rows = frame(["a \r\n"], note=["b \r\n"])
    assert Normalise(column="note")(rows).to_pydict()["note"] == ["b"]
    assert Normalise(column="note")(rows).to_pydict()["text"] == ["a \r\n"]
    with pytest.raises(TilthError, match="Did you mean 'text'"):
        Normalise(column="txt")(rows)
