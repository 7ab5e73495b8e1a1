import random
import re

import daft
import pytest
from daft.functions import when

from tests.curate.frames import fates, frame, kept
from tilth.curate.exact_dedup import ExactDedup
from tilth.curate.near_dedup import NearDedup
from tilth.curate.shingles import spaced
from tilth.errors import TilthError

RANDOM = random.Random(0)
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]


def text(words: int) -> list[str]:
    return [RANDOM.choice(WORDS) for _ in range(words)]


def with_changes(words: list[str], changes: int) -> list[str]:
    changed = list(words)
    for place in RANDOM.sample(range(len(words)), changes):
        changed[place] = "changed"
    return changed


def units(value: str, unit: str, lowercase: bool = False, punctuation: bool = True) -> list[str]:
    rows = daft.from_pydict({"text": [value]})
    spaced_out = spaced(daft.col("text"), unit, lowercase=lowercase, punctuation=punctuation)
    return rows.select(spaced_out.alias("u")).to_pydict()["u"][0].split(" ")


def test_exact_duplicates_keep_the_first_and_say_of_what():
    said = fates(ExactDedup(), frame(["a", "b", "a", "B", "b", "a", None, None, "", ""]))
    assert said == {
        "0": None, "1": None, "2": "exact_dedup: same text as 0", "3": None, "4": "exact_dedup: same text as 1",
        "5": "exact_dedup: same text as 0", "6": None, "7": None, "8": None, "9": "exact_dedup: same text as 8",
    }  # fmt: skip


def test_rows_removed_before_neither_remove_nor_change_their_reason():
    rows = frame(["a", "a", "a"]).with_column("removed", when(daft.col("id") == "0", "earlier").otherwise(daft.lit(None)))
    for step in (ExactDedup(), NearDedup()):
        said = fates(step, rows)
        assert said["0"] == "earlier" and said["1"] is None and "1" in said["2"]


def test_planted_near_duplicates_are_found_and_distinct_texts_left():
    originals = [text(200) for _ in range(40)]
    copies = [with_changes(words, 2) for words in originals]  # about 0.9 of the 5-word shingles stay
    others = [text(200) for _ in range(40)]
    rows = frame([" ".join(words) for words in originals + others + copies])
    said = fates(NearDedup(), rows)
    assert [name for name, reason in said.items() if reason is None] == [str(number) for number in range(80)]
    for number in range(40):
        match = re.fullmatch(r"near_dedup: duplicates (\d+) \(similarity (0\.\d\d)\)", said[str(80 + number)])
        assert match[1] == str(number)
        assert float(match[2]) == pytest.approx(0.905, abs=0.15)


def test_a_chain_is_one_group_and_the_first_row_stays():
    words = [f"w{number}" for number in range(300)]
    chain = [" ".join(words[begin : begin + 200]) for begin in (40, 20, 0, 60)]
    said = fates(NearDedup(bands=28, rows=4), frame(chain))
    assert [reason is None for reason in said.values()] == [True, False, False, False]
    assert "duplicates 0" in said["2"]


def test_the_order_of_rows_decides_who_stays_and_nothing_else():
    one = text(100)
    texts = [" ".join(words) for words in (one, with_changes(one, 1), text(100), with_changes(one, 1), text(100))]
    forward = kept(NearDedup(), frame(texts))
    backward = kept(NearDedup(), frame(texts[::-1]))
    assert forward == ["0", "2", "4"] and backward == ["0", "1", "2"]


def test_the_same_seed_gives_the_same_and_another_seed_other_signatures():
    rows = frame([" ".join(text(50))])
    one, same, other = (rows.select(NearDedup(seed=s).signature(daft.col("text"))).to_pydict()["text"] for s in (1, 1, 2))
    assert one == same and one != other


def test_a_threshold_is_stricter_than_banding():
    base = text(200)
    rows = frame([" ".join(base), " ".join(with_changes(base, 8))])  # similarity about 0.68
    assert kept(NearDedup(bands=56, rows=2), rows) == ["0"]
    assert kept(NearDedup(bands=56, rows=2, threshold=0.9), rows) == ["0", "1"]


def test_texts_without_shingles_and_short_texts():
    assert kept(NearDedup(), frame(["", None, "  ", "", "a b", "A  b!", "a c"])) == ["0", "1", "2", "3", "4", "6"]
    assert kept(NearDedup(), frame(["one"])) == ["0"]
    assert kept(NearDedup(lowercase=False, punctuation=True), frame(["a b", "A b", "a b!"])) == ["0", "1", "2"]


def test_units_of_shingles():
    assert units("Foo.bar(x1, y_2)\n  + é中", "word") == ["Foo.bar(x1,", "y_2)", "+", "é中"]
    assert units("Foo.bar(x1, y_2)\n  + é中", "token") == ["Foo", ".", "bar", "(", "x1", ",", "y_2", ")", "+", "é中"]
    assert units("a  é\n😀", "character") == ["a", "\x1f", "é", "\x1f", "😀"]
    assert units("Foo.bar(X)", "word", lowercase=True, punctuation=False) == ["foobarx"]


def test_shared_ids_and_missing_columns_are_the_users_to_mend():
    doubled = frame(["a", "b"]).with_column("id", daft.lit("same"))
    with pytest.raises(TilthError, match="several rows have the id 'same'"):
        NearDedup().fit(doubled)
    with pytest.raises(TilthError, match="no column 'body'"):
        ExactDedup(column="body").fit(frame(["a"]))
    with pytest.raises(TilthError, match="not text"):
        ExactDedup(column="year").fit(frame(["a"], year=[1999]))


def test_applying_before_fitting_is_a_defect():
    with pytest.raises(RuntimeError, match="fit"):
        NearDedup()(frame(["a"]))
