"""Parts of a corpus: disjoint, complete, independent of order, never empty where a row is due."""

import numpy as np
import pyarrow as pa
import pytest

from tilth.context import Context
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.stages.split import Split

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


def parts(folder, ids, cuts):
    batch = pa.RecordBatch.from_arrays([pa.array(ids), pa.array(ids)], schema=SCHEMA)
    corpus = Corpus.write(folder / "whole.lance", [batch.slice(0, 3), batch.slice(3)], SCHEMA)
    found = []
    for number, (start, stop) in enumerate(cuts):
        context = Context(folder / str(number), corpora={"c": corpus})
        context.folder.mkdir()
        metrics = Split(data="c", start=start, stop=stop).run(context)
        part = Corpus.open(context.folder / "corpus.lance").table(["id"])["id"].to_pylist()
        assert metrics == {"rows": len(part)}
        found.append(set(part))
    return found


@pytest.mark.parametrize("count", [4, 5, 30, 257])
def test_adjoining_shares_share_no_row_and_leave_none_out(tmp_path, count):
    ids = [f"row-{number}" for number in range(count)]
    train, middle, held_out = parts(tmp_path, ids, [(0, 0.5), (0.5, 0.75), (0.75, 1)])
    assert train | middle | held_out == set(ids) and len(train) + len(middle) + len(held_out) == count
    assert len(train) == count // 2 and min(len(middle), len(held_out)) >= 1


def test_the_order_of_rows_does_not_matter(tmp_path):
    ids = [f"row-{number}" for number in range(50)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shuffled = np.random.default_rng(0).permutation(ids).tolist()
    assert parts(tmp_path / "a", ids, [(0, 0.3)]) == parts(tmp_path / "b", shuffled, [(0, 0.3)])


def test_an_empty_share_is_refused(tmp_path):
    with pytest.raises(TilthError, match="is empty"):
        Split(data="c", start=0.5, stop=0.5)
    with pytest.raises(TilthError, match="of the 4 rows of 'c' is none"):
        parts(tmp_path, list("abcd"), [(0, 0.1)])
