"""Names of public data sets, where they are looked for, and downloads that are what they should be."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from tilth.corpus import Corpus, catalogue
from tilth.corpus.catalogue import entries, fingerprint, resolve, verify
from tilth.corpus.columns import KINDS
from tilth.corpus.download import download
from tilth.corpus.ingest import ingest
from tilth.errors import TilthError

CONTENT = b"date,x\n" + b"2020-01-01,1\n" * 100_000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A real HTTP server on this machine; /broken promises more than it sends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            if self.path == "/missing":
                return self.send_error(404)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/data.csv")
                return self.end_headers()
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) * (2 if self.path == "/broken" else 1)))
            self.end_headers()
            return self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def url(server, path="/data.csv"):
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_a_download_is_verified_named_and_not_repeated(tmp_path, server):
    path = download(url(server), tmp_path / "new" / "folder", "data.csv", SHA)
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["data.csv"]
    download(url(server), path.parent, "data.csv", SHA)
    assert server.asked == ["/data.csv"]
    path.write_bytes(b"damaged")
    assert download(url(server, "/moved"), path.parent, "data.csv", SHA).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "path,sha,what",
    [
        ("/data.csv", "0" * 64, "not what is expected"),
        ("/missing", SHA, "404|Not Found"),
        ("/broken", SHA, "broke off|IncompleteRead"),
    ],
)
def test_a_failed_download_leaves_nothing(tmp_path, server, path, sha, what):
    with pytest.raises(TilthError, match=what):
        download(url(server, path), tmp_path, "data.csv", sha)
    assert list(tmp_path.iterdir()) == []


def test_downloads_stay_in_their_folder_and_on_http(tmp_path, server):
    for name in ("../evil", "/etc/evil", "a/b", "..", ""):
        with pytest.raises(TilthError, match="not a plain file name"):
            download(url(server), tmp_path / "in", name, SHA)
    for address in ("file:///etc/passwd", "ftp://x/y"):
        with pytest.raises(TilthError, match="only http"):
            download(address, tmp_path, "x", SHA)
    with pytest.raises(TilthError, match="cannot be downloaded"):
        download("http://127.0.0.1:9/x", tmp_path, "x", SHA)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_name_is_looked_for_in_tilth_data_then_downloaded(tmp_path, server, monkeypatch):
    entry = {**entries()["etth1"], "sha256": SHA, "download": {"url": url(server), "file": "ETTh1.csv", "sha256": SHA}}
    monkeypatch.setitem(entries(), "etth1", entry)
    monkeypatch.setenv("TILTH_DATA", str(tmp_path / "data"))
    done = ingest("etth1", tmp_path / "c.lance")
    assert done.read == 100_000 and done.corpus.metadata["licence"] == "CC BY-ND 4.0" and server.asked == ["/data.csv"]
    assert resolve("etth1").path == tmp_path / "store" / "downloads" / "ETTh1.csv"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ETTh1.csv").write_text("date,x\n2021-01-01,2\n")
    assert resolve("etth1").path == tmp_path / "data" / "ETTh1.csv" and not verify("etth1") and len(server.asked) == 1


def test_what_cannot_be_downloaded_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("TILTH_DATA", raising=False)
    with pytest.raises(
        TilthError, match=r"PolyAI-LDN/task-specific-datasets and put them at banking77.parquet in a folder, and set TILTH_DATA"
    ):
        resolve("banking77")
    assert resolve("tofu").path == "hf:locuslab/TOFU" and resolve("tofu").columns == {"split": "config"}
    monkeypatch.setenv("TILTH_DATA", str(tmp_path))
    with pytest.raises(TilthError, match=f"put them at {tmp_path}/books.parquet"):
        resolve("books")


def test_names_paths_and_mistakes(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tofu").mkdir()
    Path("tofu/a.txt").write_text("a")
    assert resolve("tofu").path == data / "tofu.parquet" and resolve("./tofu").path == Path("tofu")
    assert resolve("a.txt", base=tmp_path / "tofu").path == tmp_path / "tofu" / "a.txt"
    source = resolve("tofu")
    assert resolve(source) is source
    with pytest.raises(TilthError, match=r"nor a name of the catalogue\nDid you mean 'books'"):
        resolve("boks")
    with pytest.raises(TilthError, match="no such file or folder"):
        resolve("./nothing.jsonl")
    with pytest.raises(TilthError, match="no reader makes rows of these files"):
        ingest("ecg_records", tmp_path / "c.lance")


@pytest.mark.parametrize("name", sorted(entries()))
def test_every_entry_is_whole_and_its_file_is_what_it_says(name, data):
    entry = entries()[name]
    assert {"about", "file", "kind", "licence", "page", "checksum", "sha256"} <= entry.keys() and len(entry["sha256"]) == 64
    assert (
        entry["kind"] in (*KINDS, "files") and entry["checksum"] in ("official", "local") and entry["page"].startswith("https://")
    )
    assert verify(name)


def test_every_file_of_the_folder_has_a_name(data):
    assert {entry["file"] for entry in entries().values()} == {path.name for path in data.iterdir()} - {"README.md"}


def test_tofu_as_a_corpus(tmp_path, data):
    done = ingest("tofu", tmp_path / "c.lance")
    assert done.corpus.kind == "answers" and done.read == 17474 and not done.skipped
    assert done.corpus.columns == [
        "id", "split", "index", "question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer", "options"
    ]  # fmt: skip
    assert done.corpus.filter("split = 'full'").count() == 4000 and done.corpus.filter("split = 'forget10'").count() == 400
    row = done.corpus.filter("split = 'forget10_perturbed'").take([0]).to_pylist()[0]
    assert (
        isinstance(row["perturbed_answer"], list)
        and len(row["perturbed_answer"]) == 5
        and isinstance(row["paraphrased_answer"], str)
    )


def test_a_fingerprint_is_of_content_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "x.txt").write_text("one")
        (tmp_path / name / "sub" / "y.txt").write_text("two")
    before = fingerprint(tmp_path / "a")
    assert before == fingerprint(tmp_path / "b") and fingerprint(tmp_path / "a" / "x.txt") == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "b" / "sub" / "y.txt").rename(tmp_path / "b" / "sub" / "z.txt")
    assert fingerprint(tmp_path / "b") != before
    (tmp_path / "a" / "x.txt").write_text("onE")
    assert fingerprint(tmp_path / "a") != before
    with pytest.raises(TilthError, match="no such file"):
        fingerprint(tmp_path / "c")


def test_no_data_are_shipped():
    assert {path.suffix for path in Path(catalogue.__file__).parent.rglob("*") if path.is_file()} <= {".py", ".pyc", ".yaml"}


def test_ingesting_a_corpus_keeps_its_rows(tmp_path):
    first = tmp_path / "in"
    first.mkdir()
    (first / "a.txt").write_text("one")
    made = ingest(first, tmp_path / "a.lance").corpus
    again = ingest(tmp_path / "a.lance", tmp_path / "b.lance").corpus
    assert again.table().equals(made.table()) and again.fingerprint == made.fingerprint
    assert Corpus.open(tmp_path / "b.lance").kind == "text"
