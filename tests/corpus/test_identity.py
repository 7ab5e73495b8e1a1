"""Content hashes do not see batches; ids are remembered exactly."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.corpus.identity import ContentHash, SeenIds

ROW = st.fixed_dictionaries(
    {
        "s": st.none() | st.text(max_size=4),
        "b": st.none() | st.binary(max_size=4),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "f": st.none() | st.floats(),
        "t": st.none() | st.booleans(),
        "l": st.none() | st.lists(st.none() | st.text(max_size=2), max_size=3),
        "r": st.none() | st.fixed_dictionaries({"x": st.none() | st.integers(0, 9), "y": st.lists(st.booleans(), max_size=2)}),
    }
)
SCHEMA = pa.schema(
    [
        ("s", pa.string()), ("b", pa.binary()), ("i", pa.int64()), ("f", pa.float64()), ("t", pa.bool_()), ("l", pa.list_(pa.string())),
        ("r", pa.struct([("x", pa.int32()), ("y", pa.list_(pa.bool_()))])),
    ]
)  # fmt: skip


def content(table, chunk):
    running = ContentHash(table.schema)
    for batch in table.to_batches(max_chunksize=chunk):
        running.update(batch)
    return running.hexdigest()


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, max_size=12), st.integers(1, 12), st.integers(0, 3))
def test_batches_make_no_difference(rows, chunk, cut):
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert content(table, chunk) == content(table, 100)
    longer = (
        pa.concat_tables([pa.Table.from_pylist(rows[:1] * cut, SCHEMA), table]).combine_chunks().slice(min(cut, len(rows) * cut))
    )
    assert content(longer, chunk) == content(table, 100)  # arrays with an offset


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6), st.lists(ROW, min_size=1, max_size=6))
def test_other_values_give_another_hash(one, other):
    a, b = (pa.Table.from_pylist(rows, SCHEMA) for rows in (one, other))
    if a.cast(SCHEMA).to_pylist().__repr__() != b.to_pylist().__repr__():
        assert content(a, 3) != content(b, 3)


def test_lengths_are_content():
    split = [["ab", "c"], ["a", "bc"]]
    assert len({content(pa.table({"s": values}), 9) for values in split}) == 2
    assert (
        len({content(pa.table({"l": [values, []]}), 9) for values in split} | {content(pa.table({"l": [[], split[0]]}), 9)}) == 3
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.text(max_size=2), max_size=30), max_size=8))
def test_an_id_is_repeated_when_a_set_says_so(batches):
    seen, known = SeenIds(), set()
    for batch in batches:
        expected = []
        for word in batch:
            expected.append(word in known)
            known.add(word)
        assert seen.add(pa.array(batch, pa.string())).tolist() == expected
    assert seen.count == len(known)


def test_the_table_of_ids_grows_and_forgets_nothing():
    seen = SeenIds()
    ids = pa.array([f"doc-{i}" for i in range(300_000)])
    for start in range(0, len(ids), 8192):
        assert not seen.add(ids.slice(start, 8192)).any()
    assert seen.table.nbytes <= 24 * 300_000
    assert seen.add(ids).all() and not seen.add(pa.array(["new"])).any()
    assert np.count_nonzero(seen.table) == 300_001
