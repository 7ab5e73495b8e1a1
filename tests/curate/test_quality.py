import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.curate.frames import fates, frame
from tilth.curate.characters import Characters
from tilth.curate.quality import Quality, figures

OFF = {
    "min_words": None, "max_words": None, "min_word_length": None, "max_word_length": None, "min_alphabetic": None,
    "max_symbol_ratio": None, "max_bullet_lines": None, "max_ellipsis_lines": None, "max_duplicate_lines": None,
    "max_duplicate_line_characters": None,
}  # fmt: skip
ALL = {
    "alphabetic share", "share of words with a letter", "symbols per word", "share of bullet lines",
    "share of lines ending in an ellipsis", "share of lines ending in punctuation", "share of duplicate lines",
    "share of characters in duplicate lines", "stop words",
}  # fmt: skip


def measured(text: str) -> dict[str, float]:
    between = pa.array(["un autre…\n# texte", text, "- ... \n"])  # neighbours must not matter
    return {name: float(values[1]) for name, values in figures(Characters.of(between), ALL)}


def said(text, **settings):
    return fates(Quality(**{**OFF, **settings}), frame([text]))["0"]


@given(st.text("ab1#. \n…-•é", max_size=60))
def test_figures_by_definition(text):
    words, lines = text.split(), [line.strip() for line in text.split("\n") if line.strip()]
    solid = sum(map(len, words))
    again = [line for place, line in enumerate(lines) if line in lines[:place]]
    dots = sum(len(run) // 3 for run in "".join(c if c == "." else " " for c in text).split())
    found = measured(text)
    assert found["characters"] == len(text) and found["words"] == len(words)
    assert found["word length"] == pytest.approx(solid / len(words) if words else 0)
    assert found["alphabetic share"] == pytest.approx(sum(c.isalnum() for c in text) / solid if solid else 0)
    assert found["share of words with a letter"] == pytest.approx(
        sum(any(c.isalpha() for c in word) for word in words) / len(words) if words else 0
    )
    assert found["symbols per word"] == pytest.approx((text.count("#") + text.count("…") + dots) / len(words) if words else 0)
    n = len(lines) or 1
    assert found["share of bullet lines"] == pytest.approx(sum(line[0] in "-•" for line in lines) / n)
    assert found["share of lines ending in an ellipsis"] == pytest.approx(sum(line.endswith(("...", "…")) for line in lines) / n)
    assert found["share of lines ending in punctuation"] == pytest.approx(sum(line[-1] in ".…" for line in lines) / n)
    assert found["share of duplicate lines"] == pytest.approx(len(again) / n)
    assert found["share of characters in duplicate lines"] == pytest.approx(
        sum(map(len, again)) / sum(map(len, lines)) if lines else 0
    )


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ("a b c", {"min_words": 4}, "quality: words 3, below 4"),
        ("a b c", {"min_words": 3}, None),
        ("a b c", {"max_words": 2}, "quality: words 3, above 2"),
        ("abcd", {"min_characters": 5}, "quality: characters 4, below 5"),
        ("é" * 6, {"max_characters": 6}, None),
        ("ab abcd", {"min_word_length": 3.0}, None),
        ("ab abc", {"min_word_length": 3.0}, "quality: word length 2.5, below 3"),
        ("a # b…", {"max_symbol_ratio": 0.5}, "quality: symbols per word 0.667, above 0.5"),
        ("x...\ny\n", {"max_ellipsis_lines": 0.3}, "quality: share of lines ending in an ellipsis 0.5, above 0.3"),
        ("• x\n  - y\nz", {"max_bullet_lines": 0.5}, "quality: share of bullet lines 0.667, above 0.5"),
        ("The cat sat with that dog", {"min_stop_words": 3}, None),
        ("the the the cat", {"min_stop_words": 2}, "quality: stop words 1, below 2"),
        ("One.\ntwo", {"min_terminal_lines": 0.6}, "quality: share of lines ending in punctuation 0.5, below 0.6"),
        ("say Lorem IPSUM dolor", {"forbidden": ["lorem ipsum"]}, "quality: contains 'lorem ipsum'"),
        ("a\nb\n a\n", {"max_duplicate_lines": 0.3}, "quality: share of duplicate lines 0.333, above 0.3"),
        (None, {}, "quality: no text"),
        ("", {}, None),
    ],
)
def test_one_rule_at_a_time(text, settings, reason):
    assert said(text, **settings) == reason


def test_the_first_rule_broken_is_the_reason():
    assert said("#", min_words=3, max_symbol_ratio=0.1).startswith("quality: words")


def test_defaults_keep_prose_and_code_and_drop_noise():
    prose = "Near the river stood a house that nobody had lived in since the great flood, and its windows were dark."
    code = "def area(width, height):\n    if width < 0:\n        raise ValueError('negative')\n    return width * height\n"
    noise = ["--- === --- === --- === --- ===", "x" * 500, "word", "same line here now\n" * 40]
    outcome = fates(Quality(), frame([prose, code, *noise]))
    assert [reason is None for reason in outcome.values()] == [True, True, False, False, False, False]
