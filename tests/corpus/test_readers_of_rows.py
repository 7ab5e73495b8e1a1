"""JSON Lines, CSV and Parquet: what is bad is listed by its place, the rest is kept, no column is lost."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tilth.corpus import Corpus
from tilth.corpus.ingest import ingest
from tilth.corpus.readers.csv import CSV
from tilth.corpus.readers.jsonl import JSONLines
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError


def read(tmp_path, source, **more):
    done = ingest(source, tmp_path / "out" / "corpus.lance", **more)
    return done, done.corpus.table().to_pylist()


def lines(path, *values):
    data = b"".join((v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n" for v in values)
    path.write_bytes(data)
    return path


def listed(done):
    return {item.where: item.reason for item in done.skipped}


def test_good_lines_are_kept_and_bad_ones_named_by_number(tmp_path):
    source = lines(
        tmp_path / "a.jsonl",
        {"text": "one"},
        b'{"text": "tw',
        {"text": "three"},
        b"",
        b"[1, 2]",
        b"null",
        {"text": ""},
        {"other": 1},
        {"text": "nine"},
    )
    done, rows = read(tmp_path, source)
    assert [(r["id"], r["text"]) for r in rows] == [("a.jsonl:1", "one"), ("a.jsonl:3", "three"), ("a.jsonl:9", "nine")]
    assert done.read == 3 and done.skipped_count == 5
    reasons = listed(done)
    assert "not JSON: Unterminated string" in reasons["a.jsonl:2"]
    assert reasons["a.jsonl:5"] == "not a JSON object but a list" and reasons["a.jsonl:6"] == "not a JSON object but a NoneType"
    assert reasons["a.jsonl:7"] == reasons["a.jsonl:8"] == "no text"
    written = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [w["where"] for w in written] == [
        s.where for s in done.skipped
    ] and done.skipped_file == tmp_path / "out" / "skipped.jsonl"


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("bad", [True, False])
def test_blocks_make_no_difference(tmp_path, block_bytes, bad):
    values = [{"text": f"line {i} " + "é" * (i % 5), "n": i, "deep": {"a": [i]}} for i in range(50)]
    source = lines(tmp_path / "a.jsonl", *values[:20], *([b"{"] if bad else []), *values[20:])
    reader = JSONLines(source, block_bytes=block_bytes)
    table = pa.Table.from_batches(reader.batches(lambda *a, **k: None)).drop_columns(["tilth:place"])
    assert table.to_pylist() == values


def test_a_field_that_first_appears_in_the_last_line_is_kept(tmp_path):
    source = lines(tmp_path / "a.jsonl", *[{"text": f"t{i}"} for i in range(1000)], {"text": "last", "late": [1.5]})
    reader = JSONLines(source, block_bytes=100)
    assert reader.schema().field("late").type == pa.list_(pa.float64())
    _, rows = read(tmp_path, source)
    assert rows[-1]["late"] == [1.5] and rows[0]["late"] is None


def test_fields_of_several_types_become_text_and_lose_nothing(tmp_path):
    source = lines(
        tmp_path / "a.jsonl",
        {"text": "a", "x": 1, "num": 1, "when": "2020-01-01", "s": {"k": 1}, "none": None, "l": [1]},
        {"text": "b", "x": "one", "num": 2.5, "when": "2020-01-02", "s": {"m": "z"}, "none": None, "l": ["a", None]},
        {"text": "c", "x": {"deep": [1, None]}, "num": None, "when": "2020-01-03T00:00:00", "s": None, "none": None, "l": []},
        {"text": "d", "x": True, "num": 3, "when": None, "s": {}, "none": None, "l": None},
        {"text": "e", "x": 12345678901234567890123, "num": 0, "when": "", "s": {"k": 2, "m": None}, "none": None, "l": [None]},
    )
    _, rows = read(tmp_path, source)
    assert [r["x"] for r in rows] == ["1", "one", '{"deep": [1, null]}', "true", "12345678901234567890123"]
    assert [r["num"] for r in rows] == [1.0, 2.5, None, 3.0, 0.0]
    assert [r["when"] for r in rows] == ["2020-01-01", "2020-01-02", "2020-01-03T00:00:00", None, ""]
    assert rows[0]["s"] == {"k": 1, "m": None} and rows[1]["s"] == {"k": None, "m": "z"} and rows[2]["s"] is None
    assert [r["l"] for r in rows] == [["1"], ["a", None], [], None, [None]]
    assert all(r["none"] is None for r in rows)


@pytest.mark.parametrize("pack,suffix", [(gzip.compress, ".gz"), (zstandard.compress, ".zst"), (lambda b: b, "")])
def test_compressed_lines(tmp_path, pack, suffix):
    plain = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(5000)).encode()
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(plain))
    done, rows = read(tmp_path, tmp_path / f"a.jsonl{suffix}")
    assert [r["text"] for r in rows] == [f"row {i}" for i in range(5000)] and not done.skipped


def test_a_truncated_gzip_gives_what_it_holds_and_is_listed(tmp_path):
    import random

    noise = random.Random(0)
    plain = "".join(json.dumps({"text": "".join(noise.choices("abcdefgh ", k=200))}) + "\n" for i in range(200_00)).encode()
    packed = gzip.compress(plain)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    reader_rows = sum(b.num_rows for b in JSONLines(tmp_path / "a.jsonl.gz", block_bytes=1 << 16).batches(lambda *a, **k: None))
    assert 5000 < reader_rows < 20000
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(plain)[:1_000_000])
    (tmp_path / "c.jsonl.gz").write_bytes(b"\x1f\x8b junk that is no gzip")
    lines(tmp_path / "d.jsonl", {"text": "good"})
    done, rows = read(tmp_path, tmp_path)
    assert rows[-1]["text"] == "good"
    assert {where.partition(":")[0] for where in listed(done)} == {"a.jsonl.gz", "b.jsonl.zst", "c.jsonl.gz"}


def test_encodings_of_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        '{"text": "caf\xe9"}\n'.encode("cp1252") + '{"text": "naïve"}\n'.encode() + b'{"text": "\x00\x01\x02\x03\xff"}\n'
    )
    (tmp_path / "b.jsonl").write_bytes('{"text": "größe"}\n{"text": "zwei"}\n'.encode("utf-16"))
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "mark"}\n')
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "half \\ud83d pair"}\n{"text": "whole \\ud83d\\ude00"}')
    done, rows = read(tmp_path, tmp_path)
    assert [r["text"] for r in rows] == ["café", "naïve", "größe", "zwei", "mark", "half ? pair", "whole 😀"]
    assert {s.where: s.kept for s in done.skipped} == {
        "a.jsonl:1": True,
        "a.jsonl:3": False,
        "b.jsonl:1": True,
        "d.jsonl:1": True,
    }
    assert done.skipped_count == 1 and "Windows-1252" in listed(done)["a.jsonl:1"] and "utf-16" in listed(done)["b.jsonl:1"]


def test_given_ids_are_kept_and_repeated_ones_listed(tmp_path):
    values = [
        {"id": 7, "text": "a"},
        {"id": 7, "text": "b"},
        {"id": None, "text": "c"},
        {"id": "7#2", "text": "d"},
        {"id": 7, "text": "e"},
    ]
    done, rows = read(tmp_path, lines(tmp_path / "a.jsonl", *values))
    assert [(r["id"], r["text"]) for r in rows] == [("7", "a"), ("7#3", "b"), ("a.jsonl:3", "c"), ("7#2", "d"), ("7#4", "e")]
    assert done.skipped_count == 0 and all(s.kept for s in done.skipped) and len(done.skipped) == 2
    assert listed(done)["a.jsonl:2"] == "the id '7' is taken: kept as '7#3'"


def test_one_id_for_all_rows_takes_no_square_time(tmp_path):
    done, rows = read(tmp_path, lines(tmp_path / "a.jsonl", *[{"id": "x", "text": "t"}] * 3000))
    assert rows[-1]["id"] == "x#3000" and len(done.skipped) == 2999


def test_strict_stops_at_the_first(tmp_path):
    source = lines(tmp_path / "a.jsonl", {"text": "one"}, b"{", {"text": "two"})
    with pytest.raises(TilthError, match=r"a.jsonl:2: not JSON"):
        ingest(source, tmp_path / "out" / "c.lance", strict=True)
    with pytest.raises(TilthError, match="no corpus here"):
        Corpus.open(tmp_path / "out" / "c.lance")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{\n[\n", bytes(range(256)) * 20])
def test_a_file_without_a_row_is_an_error(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(TilthError, match="no row could be read"):
        read(tmp_path, tmp_path / "a.jsonl")


def test_columns_are_found_or_named(tmp_path):
    source = lines(tmp_path / "a.jsonl", {"uid": "k1", "Body": "some words", "text": "title", "a.b": 1})
    done, rows = read(tmp_path, source, columns={"text": "Body", "id": "uid"})
    assert rows == [{"id": "k1", "text": "some words", "text_original": "title", "a_b": 1}] and done.corpus.kind == "text"
    with pytest.raises(TilthError, match="Did you mean 'Body'"):
        ingest(source, tmp_path / "o.lance", columns={"text": "body"})
    with pytest.raises(TilthError, match="named twice"):
        ingest(source, tmp_path / "o.lance", columns={"text": "Body", "label": "Body"})
    with pytest.raises(TilthError, match=r"no column holds answers\nName it: columns=\{'question'"):
        ingest(source, tmp_path / "o.lance", kind="answers")
    with pytest.raises(TilthError, match="Did you mean 'answers'"):
        ingest(source, tmp_path / "o.lance", kind="answer")


def test_questions_with_answers(tmp_path):
    done, rows = read(
        tmp_path,
        lines(tmp_path / "a.jsonl", {"prompt": "Who?", "completion": "Ada.", "n": 1}, {"prompt": "What?", "completion": None}),
    )
    assert done.corpus.kind == "answers" and rows == [{"id": "a.jsonl:1", "question": "Who?", "answer": "Ada.", "n": 1}]
    assert listed(done) == {"a.jsonl:2": "no answer"}


def test_csv_types_are_those_of_the_whole_column(tmp_path):
    (tmp_path / "a.csv").write_text(
        'when,whole,real,code,mixed,absent,"a ""q"", b"\n'
        + "2016-07-01 00:00:00,1,1.5,00123,1,,x\n"
        + '2016-07-02,+2,-1e3,7,two,,"a\nb"\n'
        + "2016-07-03,NA,3,8,,,\n"
    )
    done, rows = read(tmp_path, tmp_path / "a.csv", kind="table")
    assert rows[0] == {
        "id": "a.csv#0", "when": "2016-07-01 00:00:00", "whole": 1, "real": 1.5, "code": "00123", "mixed": "1", "absent": "", 'a "q", b': "x"
    }  # fmt: skip
    assert [r["whole"] for r in rows] == [1, 2, None] and [r["real"] for r in rows] == [1.5, -1000.0, 3.0]
    assert [r["mixed"] for r in rows] == ["1", "two", ""] and rows[1]['a "q", b'] == "a\nb" and not done.skipped


def test_csv_rows_with_too_many_or_too_few_cells_are_listed(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\nfirst row,1\nno number\nthird row,3,4\nfourth row,4\n")
    done, rows = read(tmp_path, tmp_path / "a.csv", columns={"text": "text"})
    assert [(r["text"], r["n"]) for r in rows] == [("first row", 1), ("fourth row", 4)]
    assert done.skipped_count == 2
    assert listed(done) == {
        "a.csv:3": "a row of 1 cells where 2 are expected: no number",
        "a.csv:4": "a row of 3 cells where 2 are expected: third row,3,4",
    }


def test_csv_separators_encodings_and_other_oddities(tmp_path):
    (tmp_path / "a.csv").write_bytes("name;text\nM\xfcller;sch\xf6n\n".encode("cp1252"))
    (tmp_path / "b.tsv").write_text("name\ttext\nx\ty, z\n")
    (tmp_path / "c.csv").write_bytes(gzip.compress(b"name,text\nzipped,yes\n"))
    (tmp_path / "d.csv").write_bytes(b"")
    (tmp_path / "e.csv").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "f.csv").write_text("name,text\n")
    (tmp_path / "g.csv").write_bytes("\ufeffname,text\nmarked,ok\n".encode())
    (tmp_path / "notes.md").write_text("not a table")
    done, rows = read(tmp_path, tmp_path)
    assert [(r["name"], r["text"]) for r in rows] == [("Müller", "schön"), ("x", "y, z"), ("zipped", "yes"), ("marked", "ok")]
    assert listed(done).keys() == {"a.csv:2", "d.csv", "e.csv", "notes.md"} and listed(done)["e.csv"] == "binary, not text"


def test_csv_that_breaks_off_inside_quotes_is_listed(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\ngood row,1\n"never closed,2\nmore,3\n')
    done, rows = read(tmp_path, tmp_path / "a.csv")
    assert rows[0]["text"] == "good row" and (done.skipped or "never closed" in rows[1]["text"])


def test_csv_in_blocks_equals_csv_at_once(tmp_path):
    text = "text,n\n" + "".join(f'"row {i}, with\nlines",{i if i < 400 else i / 2}\n' for i in range(500))
    (tmp_path / "a.csv").write_text(text)

    def rows(block):
        return pa.Table.from_batches(CSV(tmp_path / "a.csv", block_bytes=block).batches(lambda *a, **k: None)).to_pylist()

    assert rows(300) == rows(64) == rows(1 << 22) and len(rows(300)) == 500 and rows(300)[0]["n"] == 0.0


def test_a_csv_row_longer_than_a_block_is_read_and_nothing_is_listed_twice(tmp_path):
    long = "a very long cell\n" * 100
    (tmp_path / "a.csv").write_text(f'text,n\n1\nfirst,1\n"{long}",2\nlast,3,3\nlast,4\n')
    skip = SkipList()
    rows = pa.Table.from_batches(CSV(tmp_path / "a.csv", block_bytes=50).batches(skip)).to_pylist()
    assert [(r["text"], r["n"]) for r in rows] == [("first", 1), (long, 2), ("last", 4)]
    assert [item.reason[:18] for item in skip.items] == ["a row of 1 cells w", "a row of 3 cells w"]


def test_etth1_comes_through_unchanged(tmp_path, data):
    done = ingest(data / "ETTh1.csv", tmp_path / "c.lance")
    assert done.corpus.kind == "table" and done.read == 17420 and not done.skipped
    row = done.corpus.take([0]).to_pylist()[0]
    assert row["date"] == "2016-07-01 00:00:00" and row["HUFL"] == 5.827000141143799 and row["OT"] == 30.5310001373291


def test_parquet_files_of_different_columns_and_broken_ones(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["c"], "n": [1.5], "more": [["x"]]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 this is not Parquet PAR1")
    (tmp_path / "d.parquet").write_bytes(b"")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "e.parquet").write_bytes(whole[: len(whole) // 2])
    done, rows = read(tmp_path, tmp_path)
    assert [(r["id"], r["text"], r["n"], r["more"]) for r in rows] == [
        ("a.parquet#0", "a", 1.0, None), ("a.parquet#1", "b", 2.0, None), ("b.parquet#0", "c", 1.5, ["x"])
    ]  # fmt: skip
    assert listed(done).keys() == {"c.parquet", "d.parquet", "e.parquet"}
    with pytest.raises(TilthError, match="cannot be read as Parquet"):
        ingest(tmp_path / "c.parquet", tmp_path / "o" / "c.lance")


def test_parquet_damaged_in_the_middle_keeps_the_other_row_groups(tmp_path):
    table = pa.table({"text": [f"some words {i}" for i in range(4000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000, compression="zstd", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    third = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0).data_page_offset
    data[third + 60 : third + 200] = bytes(140)
    (tmp_path / "a.parquet").write_bytes(data)
    done, rows = read(tmp_path, tmp_path / "a.parquet")
    expected = table["text"].to_pylist()
    assert [r["text"] for r in rows] == expected[:2000] + expected[3000:] and rows[-1]["id"] == "a.parquet#3999"
    assert len(rows) == 3000 and done.skipped_count == 1


def test_the_same_data_elsewhere_have_the_same_fingerprint(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "a.jsonl", {"text": "x"}, {"text": "y", "n": 1})
    prints = {ingest(tmp_path / n / "a.jsonl", tmp_path / f"{n}.lance").corpus.fingerprint for n in ("one", "two")}
    assert len(prints) == 1
