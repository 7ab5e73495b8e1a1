"""What a file or folder holds is found and said in words."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tilth.corpus import Corpus
from tilth.corpus.columns import map_columns
from tilth.corpus.detect import READERS, detect
from tilth.errors import TilthError
from tilth.registry import entries

LONG = "a sentence of some length that reads like prose, " * 3


@pytest.mark.parametrize(
    "name,content,kind,reader,columns",
    [
        ("a.jsonl", json.dumps({"text": "x"}), "text", "jsonl", {"text": "text"}),
        ("a.ndjson", json.dumps({"title": "x", "long": LONG}), "text", "jsonl", {"text": "long"}),
        (
            "a.json",
            json.dumps({"instruction": "x", "output": "y"}),
            "answers",
            "jsonl",
            {"question": "instruction", "answer": "output"},
        ),
        ("a.csv", "date,a\n2020-01-01 10:00,1\n", "table", "csv", {}),
        ("a.tsv", f"n\tContent\n1\t{LONG}\n", "text", "csv", {"text": "Content"}),
        ("a.txt", "words", "text", "text", {}),
        ("README", "no ending", "text", "text", {}),
        ("a.py", "x = 1", "text", "code", {}),
    ],
)
def test_files(tmp_path, name, content, kind, reader, columns):
    (tmp_path / name).write_text(content + "\n")
    found = detect(tmp_path / name)
    assert (found.kind, found.reader, dict(found.columns)) == (kind, reader, columns) and found.why


def test_folders(tmp_path):
    for name in ("a.py", "b.py", "notes.txt", "c.rs"):
        (tmp_path / name).write_text("x = 1\n")
    found = detect(tmp_path)
    assert (found.kind, found.reader, found.why) == ("text", "code", "3 of its 4 files are code")
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    table = pa.table({"id": ["a"], "question": ["q"], "answer": ["r"]})
    Corpus.write(tmp_path / "c.lance", table.to_batches(), table.schema)
    assert (detect(tmp_path / "c.lance").kind, detect(tmp_path / "c.lance").reader) == ("answers", "lance")


def test_first_bytes_tell_where_the_name_does_not(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "part-0000")
    assert detect(tmp_path / "part-0000").reader == "parquet"
    (tmp_path / "thing").write_bytes(bytes(range(256)))
    with pytest.raises(TilthError, match="no reader knows"):
        detect(tmp_path / "thing")


def test_shared_data(data):
    assert (detect(data / "tofu.parquet").kind, detect(data / "books.parquet").kind, detect(data / "ETTh1.csv").kind) == (
        "answers",
        "text",
        "table",
    )
    assert detect(data / "cifar10_subset.parquet").columns == {"image": "image"} and detect(
        data / "spoken_digits.parquet"
    ).columns == {"sound": "audio"}


def test_every_reader_of_the_registry_is_one_that_detection_knows():
    assert {entry.name for entry in entries("reader") if entry.module.startswith("tilth.")} == set(READERS)


def test_short_or_unspaced_strings_are_not_prose():
    head = pa.record_batch({"hash": ["0123456789abcdef" * 4] * 3, "city": ["New York"] * 3, "n": [1, 2, 3]})
    assert map_columns(head, kind="auto", gives="table", given={}, place="x").kind == "table"
