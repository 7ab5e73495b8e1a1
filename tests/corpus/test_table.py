"""Corpus: versions, predicates, rows by number, fingerprints."""

import pickle

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.corpus import Corpus
from tilth.errors import TilthError

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64()), ("tags", pa.list_(pa.string()))])


def people(count=100, prefix=""):
    return pa.table(
        {
            "id": [f"{prefix}{i}" for i in range(count)],
            "text": [None if i % 9 == 8 else "word " * (i % 13) for i in range(count)],
            "n": list(range(count)),
            "tags": [None if i % 7 == 0 else ["a", None, "b"][: i % 4] for i in range(count)],
        },
        schema=SCHEMA,
    )


def written(folder, name="c", table=None, chunk=17, **metadata):
    table = people() if table is None else table
    return Corpus.write(folder / f"{name}.lance", table.to_batches(max_chunksize=chunk), table.schema, metadata=metadata)


def test_what_is_written_is_read(tmp_path):
    corpus = written(tmp_path, source="here")
    again = Corpus.open(tmp_path / "c.lance")
    assert again.table().equals(people()) and again.count() == 100
    assert again.kind == corpus.kind == "text" and again.metadata["source"] == "here"
    assert again.columns == ["id", "text", "n", "tags"] and again.version == 1
    assert again.schema.metadata is None


def test_columns_come_in_the_order_asked_for(tmp_path):
    corpus = written(tmp_path)
    assert corpus.table(["n", "id"]).column_names == ["n", "id"]
    assert next(corpus.scan(["tags", "id"])).schema.names == ["tags", "id"]
    assert corpus.take([3], ["n", "id"]).to_pylist() == [{"n": 3, "id": "3"}]


def test_a_scan_keeps_row_order_and_batch_size(tmp_path):
    corpus = written(tmp_path, table=people(5000), chunk=333).filter("n % 3 = 0")
    batches = list(corpus.scan(["n"], batch_size=256))
    assert max(batch.num_rows for batch in batches) <= 256
    assert [n for batch in batches for n in batch.column(0).to_pylist()] == list(range(0, 5000, 3))


def test_rows_are_taken_by_their_number_in_the_view(tmp_path):
    corpus = written(tmp_path)
    corpus.delete("n < 10")
    view = corpus.filter("n % 2 = 0")
    assert corpus.take([0, 89, 5, 5], ["n"])["n"].to_pylist() == [10, 99, 15, 15]
    assert view.take(np.array([44, 0, 1, 0]), ["n"])["n"].to_pylist() == [98, 10, 12, 10]
    assert view.take([], ["n"]).num_rows == 0
    assert view.take(range(view.count())).equals(view.table())
    for bad in ([45], [-1]):
        with pytest.raises(IndexError, match="45 rows"):
            view.take(bad)


def test_filters_join(tmp_path):
    view = written(tmp_path).filter("n > 10 OR n = 3").filter("n < 13")
    assert view.table(["n"])["n"].to_pylist() == [3, 11, 12]
    assert view.where == "(n > 10 OR n = 3) AND (n < 13)"
    assert pickle.loads(pickle.dumps(view)).table().equals(view.table())


def test_appending_and_deleting_make_versions(tmp_path):
    corpus = written(tmp_path)
    corpus.append(people(5, "b").to_batches())
    assert corpus.version == 2 and corpus.count() == 105
    assert corpus.take([104], ["id"])["id"].to_pylist() == ["b4"]
    assert corpus.filter("n >= 50").delete("n < 60") == 10 and Corpus.open(corpus.uri).count() == 95
    assert [(v["version"], v["rows"]) for v in corpus.versions()][:2] == [(1, 100), (2, 105)]
    assert Corpus.open(corpus.uri, version=1).table().equals(people())
    with pytest.raises(TilthError, match="not the newest"):
        Corpus.open(corpus.uri, version=1).delete("n = 1")


def test_ids_are_unique_strings(tmp_path):
    corpus = written(tmp_path)
    with pytest.raises(TilthError, match="two rows have the id '0'"):
        corpus.append(people(1).to_batches())
    assert Corpus.open(corpus.uri).count() == 100
    twice = pa.concat_tables([people(3), people(1)])
    with pytest.raises(TilthError, match="two rows have the id '0'"):
        written(tmp_path, "twice", twice, chunk=2)
    with pytest.raises(TilthError, match="no corpus here"):
        Corpus.open(tmp_path / "twice.lance")  # nothing was committed
    with pytest.raises(TilthError, match="no id"):
        written(tmp_path, "null", pa.table({"id": pa.array(["a", None])}))
    for schema in (pa.schema([("id", pa.int64())]), pa.schema([("text", pa.string())])):
        with pytest.raises(TilthError, match="column 'id' of type string"):
            Corpus.write(tmp_path / "x.lance", [], schema)


def test_an_error_of_the_batches_comes_through_as_it_is(tmp_path):
    def batches():
        yield from people().to_batches()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Corpus.write(tmp_path / "c.lance", batches(), people().schema)
    with pytest.raises(TilthError):
        Corpus.open(tmp_path / "c.lance")


def test_equal_content_and_history_have_equal_fingerprints(tmp_path):
    a, b = written(tmp_path, "a", chunk=3), written(tmp_path, "b", chunk=100, source="elsewhere")
    assert a.fingerprint == b.fingerprint
    assert a.filter("n > 3").fingerprint == b.filter("n > 3").fingerprint != a.fingerprint
    before = a.fingerprint
    for corpus in (a, b):
        corpus.append(people(4, "x").to_batches(max_chunksize=1 if corpus is a else 4))
        corpus.delete("n = 2")
    assert a.fingerprint == b.fingerprint != before
    assert Corpus.open(a.uri, version=1).fingerprint == before and Corpus.open(a.uri).fingerprint == a.fingerprint
    b.delete("n = 3")
    assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize(
    "column,value", [("id", "new"), ("text", "word"), ("text", None), ("n", 7), ("tags", ["a", ""]), ("tags", [])]
)
def test_any_changed_value_changes_the_fingerprint(tmp_path, column, value):
    rows = people(10).to_pylist()
    before = written(tmp_path, "a", pa.Table.from_pylist(rows, people().schema)).fingerprint
    assert rows[3][column] != value
    rows[3][column] = value
    assert written(tmp_path, "b", pa.Table.from_pylist(rows, people().schema)).fingerprint != before


def test_row_order_and_column_names_are_content(tmp_path):
    table = people(10)
    prints = {
        written(tmp_path, "a", table).fingerprint,
        written(tmp_path, "b", table.take(list(range(9, -1, -1)))).fingerprint,
        written(tmp_path, "c", table.rename_columns(["id", "body", "n", "tags"])).fingerprint,
        written(tmp_path, "d", table.slice(0, 9)).fingerprint,
    }
    assert len(prints) == 4


def test_a_table_of_another_program_is_a_corpus_too(tmp_path):
    ours = written(tmp_path, "ours")
    lance.write_dataset(people(), str(tmp_path / "a.lance"))
    lance.write_dataset(people(), str(tmp_path / "b.lance"), max_rows_per_file=30)
    a, b = Corpus.open(tmp_path / "a.lance"), Corpus.open(tmp_path / "b.lance")
    assert a.kind == "text" and a.fingerprint == b.fingerprint != ours.fingerprint
    lance.dataset(a.uri).update({"n": "n + 1"}, where="n = 5")
    assert Corpus.open(a.uri).fingerprint != b.fingerprint


def test_compaction_keeps_rows_and_fingerprint(tmp_path):
    corpus = written(tmp_path)
    corpus.append(people(5, "b").to_batches())
    before, rows = corpus.fingerprint, corpus.table()
    lance.dataset(corpus.uri).optimize.compact_files()
    after = Corpus.open(corpus.uri)
    assert after.version > corpus.version and after.fingerprint == before and after.table().equals(rows)


def test_writing_again_replaces_the_rows_and_keeps_the_old_version(tmp_path):
    written(tmp_path, "c")
    other = pa.table({"id": ["q"], "score": [1.5]})
    corpus = written(tmp_path, "c", other)
    assert corpus.version == 2 and corpus.table().equals(other) and corpus.kind == "table"
    assert corpus.fingerprint == written(tmp_path, "fresh", other).fingerprint
    assert Corpus.open(corpus.uri, version=1).count() == 100


def test_an_empty_and_a_one_row_corpus(tmp_path):
    empty = written(tmp_path, "empty", people(0))
    assert (
        empty.count() == 0
        and list(empty.scan()) == []
        and empty.table().schema == people().schema
        and empty.take([]).num_rows == 0
    )
    assert empty.frame().to_pydict()["id"] == []
    one = written(tmp_path, "one", people(1))
    assert one.take([0, 0])["id"].to_pylist() == ["0", "0"] and one.filter("n > 5").count() == 0
    assert one.filter("n > 5").take([]).num_rows == 0


@pytest.mark.parametrize(
    "where,what,hint",
    [
        ("txt = 'a'", "'txt', which is not a column", "Did you mean 'text'?"),
        ("zzzzzz > 3", "not a column", "Known: id, n, tags, text"),
        ("n >", "not a predicate", "SQL predicate"),
        ("n = 'abc'", "not a predicate", "SQL predicate"),
        ("n", "not a predicate", "SQL predicate"),
    ],
)
def test_a_wrong_predicate_says_what_is_wrong(tmp_path, where, what, hint):
    corpus = written(tmp_path)
    for use in (corpus.filter, corpus.delete, lambda w: Corpus.open(corpus.uri, where=w)):
        with pytest.raises(TilthError) as error:
            use(where)
        assert what in error.value.what and hint in error.value.hint and ".rs" not in str(error.value)
    assert corpus.count() == 100


def test_a_wrong_column_table_or_version_says_what_there_is(tmp_path):
    corpus = written(tmp_path)
    for use in (lambda: list(corpus.scan(["txet"])), lambda: corpus.take([0], ["txet"]), lambda: corpus.table(["txet"])):
        with pytest.raises(TilthError, match="Did you mean 'text'"):
            use()
    with pytest.raises(TilthError, match="no corpus here"):
        Corpus.open(tmp_path / "nothing.lance")
    with pytest.raises(TilthError, match=r"no version 7\nVersions: \[1\]"):
        Corpus.open(corpus.uri, version=7)


def test_dictionaries_are_stored_as_their_values(tmp_path):
    table = pa.table({"id": ["a", "b"], "label": pa.array(["x", "y"]).dictionary_encode()})
    assert written(tmp_path, "d", table).table()["label"].to_pylist() == ["x", "y"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=5), st.lists(st.integers(-9, 9), max_size=3)), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_take_is_indexing(tmp_path_factory, rows, chunk):
    folder = tmp_path_factory.mktemp("take")
    table = pa.table({"id": [str(i) for i in range(len(rows))], "text": [r[0] for r in rows], "v": [r[1] for r in rows]})
    corpus = written(folder, "c", table, chunk)
    numbers = np.random.default_rng(0).integers(0, len(rows), 50)
    assert corpus.take(numbers)["text"].to_pylist() == [rows[i][0] for i in numbers]
    assert corpus.take(numbers)["v"].to_pylist() == [rows[i][1] for i in numbers]
