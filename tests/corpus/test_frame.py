"""The Daft view of a corpus: lazy, versioned, filtered, in row order."""

import daft
import lance
import pyarrow as pa
import pytest

from tilth.corpus import Corpus


@pytest.fixture
def corpus(tmp_path):
    table = pa.table({"id": [str(i) for i in range(1000)], "text": [f"text {i}" for i in range(1000)], "n": list(range(1000))})
    made = Corpus.write(tmp_path / "c.lance", table.to_batches(max_chunksize=100), table.schema)
    for part in range(3):
        made.append(table.set_column(0, "id", pa.array([f"{part}-{i}" for i in range(1000)])).slice(part, 10).to_batches())
    return made


def test_the_frame_is_the_view_in_row_order(corpus):
    view = corpus.filter("n % 5 < 2")
    assert view.frame().to_arrow().to_pylist() == view.table().to_pylist()
    assert len(lance.dataset(corpus.uri).get_fragments()) > 1


def test_the_frame_keeps_its_version(corpus):
    frame = Corpus.open(corpus.uri, version=1).frame()
    corpus.delete("n < 500")
    assert frame.count_rows() == 1000 and corpus.frame().count_rows() == corpus.count() < 1000


def test_columns_predicates_and_limits_of_the_plan_hold(corpus):
    frame = corpus.filter("n < 20").frame()
    assert frame.where(daft.col("n") >= 18).select("id").to_pydict()["id"] == ["18", "19"]
    assert len(frame.limit(3).to_pydict()["id"]) == 3
    assert frame.with_column("m", daft.col("n") * 2).select("m").agg(daft.col("m").sum()).to_pydict()["m"] == [
        2 * sum(corpus.filter("n < 20").table(["n"])["n"].to_pylist())
    ]


def test_only_what_is_needed_is_read(corpus, monkeypatch):
    asked = []
    scanner = lance.LanceDataset.scanner
    monkeypatch.setattr(lance.LanceDataset, "scanner", lambda self, *a, **k: asked.append(k["columns"]) or scanner(self, *a, **k))
    frame = corpus.frame().select("n")
    assert asked == []  # nothing before it is collected
    frame.collect()
    assert asked and all(columns == ["n"] for columns in asked)
