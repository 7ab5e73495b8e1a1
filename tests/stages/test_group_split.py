"""Splits by event: no event in two parts, whatever is asked."""

import pyarrow as pa
import pytest

from tilth.context import Context
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.stages.group_split import GroupSplit, asserted_apart


def split(folder, take, parts, events=None, column="event"):
    events = events or [f"e{i % 10}" for i in range(60)]
    table = pa.table({"id": [str(i) for i in range(len(events))], "event": events})
    place = folder / f"{take}-{len(list(folder.iterdir()))}"
    place.mkdir()
    corpus = Corpus.write(place / "whole.lance", table.to_batches(), table.schema)
    metrics = GroupSplit(data="c", parts=parts, take=take, column=column).run(Context(place, corpora={"c": corpus}))
    part = Corpus.open(place / "corpus.lance").table(["id", "event"])
    assert metrics == {"rows": part.num_rows, "groups": len(set(part["event"].to_pylist()))}
    return set(part["event"].to_pylist()), part.num_rows


def test_shares_of_groups_have_no_group_in_common_and_leave_none_out(tmp_path):
    parts = {"train": 0.6, "validation": 0.2, "test": 0.2}
    found = {name: split(tmp_path, name, parts) for name in parts}
    assert [len(groups) for groups, _ in found.values()] == [6, 2, 2]
    assert len(set().union(*(groups for groups, _ in found.values()))) == 10
    assert sum(rows for _, rows in found.values()) == 60
    backwards = [f"e{i % 10}" for i in range(60)][::-1]
    assert split(tmp_path, "train", parts, backwards) == found["train"]


def test_lists_are_taken_as_they_are_and_the_rest_is_left_out(tmp_path):
    parts = {"train": ["e1", "e3"], "test": ["e2"]}
    assert split(tmp_path, "train", parts) == ({"e1", "e3"}, 12) and split(tmp_path, "test", parts) == ({"e2"}, 6)
    numbers = [i % 4 for i in range(20)]
    assert split(tmp_path, "a", {"a": [0, 3], "b": [1]}, numbers) == ({0, 3}, 10)


def test_a_group_in_two_parts_is_refused(tmp_path):
    with pytest.raises(TilthError, match="'e2' is in the parts 'train' and 'test'"):
        GroupSplit(data="c", parts={"train": ["e1", "e2"], "test": ["e2"]}, take="train")
    with pytest.raises(TilthError, match="in the parts"):
        asserted_apart({"train": [1], "test": [2, 1]})


def test_what_cannot_be_is_told(tmp_path):
    for parts, take, message in (
        ({"train": 0.8, "test": 0.3}, "train", "more than 1"),
        ({"train": 0.8}, "test", "no part 'test'"),
        ({"train": 0.8, "test": ["e1"]}, "test", "all shares or all lists"),
        ({"train": 0.01, "rest": 0.99}, "train", "none is in 'train'"),
        ({"train": ["e77"]}, "train", "no row has the 'event' e77"),
    ):
        with pytest.raises(TilthError, match=message):
            split(tmp_path, take, parts)
    with pytest.raises(TilthError, match="no column 'tile'"):
        split(tmp_path, "train", {"train": 0.5}, column="tile")
    with pytest.raises(TilthError, match="a row has no 'event'"):
        split(tmp_path, "train", {"train": 0.5}, ["a", None, "b"])
