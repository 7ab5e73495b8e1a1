"""Data sets as `datasets` keeps them: folders it saved, folders it loads, and names that cannot be reached."""

import io

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tilth.corpus import catalogue
from tilth.corpus.detect import detect
from tilth.corpus.ingest import ingest
from tilth.errors import TilthError

datasets = pytest.importorskip("datasets")


def test_a_saved_data_set_with_splits_and_class_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    test = datasets.Dataset.from_dict({"text": ["d"], "label": [0]}, features=features)
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "saved")
    assert detect(tmp_path / "saved").reader == "hub"
    rows = ingest(tmp_path / "saved", tmp_path / "c.lance").corpus.table().to_pylist()
    assert rows == [
        {"id": "train#0", "split": "train", "text": "a", "label": "yes"},
        {"id": "train#1", "split": "train", "text": "b", "label": "no"},
        {"id": "train#2", "split": "train", "text": "c", "label": "yes"},
        {"id": "test#0", "split": "test", "text": "d", "label": "no"},
    ]


def test_a_folder_that_datasets_streams(tmp_path, monkeypatch):
    import pyarrow as pa

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    pq.write_table(
        pa.table({"question": [f"q{i}" for i in range(3000)], "answer": ["a"] * 3000, "n": [[i] for i in range(3000)]}),
        tmp_path / "set" / "train.parquet",
    )
    pq.write_table(pa.table({"question": ["last"], "answer": ["z"], "n": [[1]]}), tmp_path / "set" / "test.parquet")
    done = ingest(f"hf:{tmp_path / 'set'}", tmp_path / "c.lance")
    assert (
        done.corpus.kind == "answers"
        and done.read == 3001
        and done.corpus.filter("split = 'test'").table(["question"]).to_pylist() == [{"question": "last"}]
    )
    train = done.corpus.filter("split = 'train'")
    assert train.take([2999], ["question", "n"]).to_pylist() == [{"question": "q2999", "n": [2999]}]
    assert catalogue.fingerprint(f"hf:{tmp_path / 'set'}") == catalogue.fingerprint(f"hf:{tmp_path / 'set'}")


def test_images_come_as_bytes(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": stream.getvalue(), "path": None}]}, features=datasets.Features({"image": datasets.Image()})
    )
    made.save_to_disk(tmp_path / "saved")
    done = ingest(tmp_path / "saved", tmp_path / "c.lance")
    assert done.corpus.kind == "image" and done.corpus.table()["image"][0].as_py() == stream.getvalue()


def test_a_name_that_cannot_be_reached_says_so(tmp_path):
    with pytest.raises(
        TilthError, match=r"hf:nobody/nothing: cannot be read from the Hub|nobody/nothing: cannot be read from the Hub"
    ):
        ingest("hf:nobody/nothing", tmp_path / "c.lance")
    with pytest.raises(TilthError, match="the Hub cannot be asked"):
        catalogue.fingerprint("hf:nobody/nothing")
