"""Folders of text, code, images and sound, and tars: oddities are listed, nothing follows a path out, nothing crashes."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from tilth.corpus.ingest import ingest
from tilth.corpus.readers.folders import Text
from tilth.corpus.readers.media import sound_facts
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError
from tilth.registry import use


def read(tmp_path, source, **more):
    done = ingest(source, tmp_path / "out" / "corpus.lance", **more)
    return done, {row["id"]: row for row in done.corpus.table().to_pylist()}


def listed(done):
    return {item.where: item.reason for item in done.skipped}


def put(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def picture(size=(40, 30), kind="JPEG"):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def tone(kind="WAV", seconds=0.2):
    stream = io.BytesIO()
    soundfile.write(stream, np.sin(np.arange(int(8000 * seconds)) / 9).astype(np.float32), 8000, format=kind)
    return stream.getvalue()


def test_a_folder_of_text_with_everything_that_goes_wrong(tmp_path):
    source = tmp_path / "in"
    put(
        source,
        a_dot_txt="plain",
        sub__b_dot_md="# ünïcode",
        c_dot_txt="caf\xe9 “quoted”".encode("cp1252"),
        d_dot_txt="größer".encode("utf-16"),
        e_dot_txt=b"",
        f_dot_txt=b" \n\n",
        g_dot_bin=bytes(range(256)) * 100,
        h_dot_txt=b"\xff\xfe\x00",
        i_dot_txt=b"latin \x81 one",
    )
    put(source / ".git", config="hidden")
    put(source / "__pycache__", x_dot_txt="cached")
    (source / "loop").symlink_to(source)
    (source / "sub" / "up").symlink_to("..")
    (source / "self").symlink_to("self")
    (source / "nowhere").symlink_to("missing")
    os.mkfifo(source / "pipe")
    done, rows = read(tmp_path, source)
    assert {name: row["text"] for name, row in rows.items()} == {
        "a.txt": "plain", "sub/b.md": "# ünïcode", "c.txt": "café “quoted”", "d.txt": "größer", "i.txt": "latin \x81 one"
    }  # fmt: skip
    reasons = listed(done)
    assert reasons["e.txt"] == "an empty file" and reasons["f.txt"] == "nothing but white space"
    assert reasons["g.bin"] == "binary, not text" and "utf-16-le but is not" in reasons["h.txt"]
    assert reasons["loop"] == "the same folder as '.' (a link)" and "same folder" in reasons["sub/up"]
    assert reasons["self"] == "a link that leads back to itself" and reasons["nowhere"] == "a link to nothing"
    assert (
        reasons["pipe"] == "neither a file nor a folder"
        and reasons[".git"] == "hidden"
        and reasons["__pycache__"] == "a cache of a tool"
    )
    assert {s.where for s in done.skipped if s.kept} == {"c.txt", "d.txt", "i.txt"} and "Latin-1" in reasons["i.txt"]
    assert done.skipped_count == len(done.skipped) - 3


def test_a_file_name_that_is_not_text_is_no_trouble(tmp_path):
    source = put(tmp_path / "in", a_dot_txt="fine")
    (source / os.fsdecode(b"caf\xe9.txt")).write_text("odd name")
    _, rows = read(tmp_path, source)
    assert {row["text"] for row in rows.values()} == {"fine", "odd name"} and "caf\\xe9.txt" in rows


def test_what_cannot_be_read_is_listed(tmp_path, monkeypatch):
    source = put(tmp_path / "in", a_dot_txt="fine", b_dot_txt="locked", c_dot_txt="too")
    (source / "b.txt").chmod(0)
    if os.access(source / "b.txt", os.R_OK):  # permissions do not bind the superuser
        whole = type(source).read_bytes

        def refused(path):
            if path.name == "b.txt":
                raise PermissionError(13, "Permission denied")
            return whole(path)

        monkeypatch.setattr(type(source), "read_bytes", refused)
    done, rows = read(tmp_path, source)
    assert rows.keys() == {"a.txt", "c.txt"} and listed(done) == {"b.txt": "cannot be read: Permission denied"}


def test_a_long_text_is_cut_at_line_ends_and_whole(tmp_path):
    text = "".join(f"line {i} é\n" for i in range(5000)) + "no newline at the end"
    source = put(tmp_path / "in", a_dot_txt=text, b_dot_txt="short")
    batches = list(Text(source, part_bytes=10_000).batches(SkipList()))
    rows = [row for batch in batches for row in batch.to_pylist()]
    parts = [row for row in rows if row["tilth:place"].startswith("a.txt#")]
    assert "".join(row["text"] for row in parts) == text and len(parts) > 5 and rows[-1]["text"] == "short"
    assert all(row["text"].endswith("\n") for row in parts[:-1])


def test_a_single_file_of_text_or_code(tmp_path):
    source = put(tmp_path / "in", a_dot_md="# words", b_dot_py="print(1)\n")
    done, rows = read(tmp_path, source / "a.md")
    assert rows["a.md"]["text"] == "# words" and done.corpus.kind == "text"
    done, rows = read(tmp_path, source / "b.py")
    assert rows["b.py"] == {"id": "b.py", "text": "print(1)\n", "language": "python"}


def test_a_folder_of_code(tmp_path):
    source = put(
        tmp_path / "in",
        a_dot_py="x = 1",
        lib__b_dot_rs="fn main() {}",
        lib__c_dot_py="y = 'é'".encode("latin-1"),
        d_dot_pyc=b"\0\1",
    )
    done, rows = read(tmp_path, source)
    assert {name: row["language"] for name, row in rows.items()} == {"a.py": "python", "lib/b.rs": "rust", "lib/c.py": "python"}
    assert listed(done)["d.pyc"] == "not a source file by its name"


def test_empty_folders_and_files_and_missing_ones(tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    put(tmp_path, zero_dot_txt=b"", junk_dot_dat=bytes(range(256)))
    for source, what in [
        ("empty", "the folder is empty"),
        ("zero.txt", "an empty file"),
        ("junk.dat", "no reader knows"),
        ("gone.txt", "no such file"),
    ]:
        with pytest.raises(TilthError, match=what):
            ingest(tmp_path / source, tmp_path / "out.lance")
    with pytest.raises(TilthError, match=r"zero\.txt"):
        ingest(tmp_path / "gone.txt", tmp_path / "out.lance")
    assert not (tmp_path / "out.lance").exists()


def test_one_row(tmp_path):
    done, _ = read(tmp_path, put(tmp_path / "in", only_dot_txt="alone"))
    assert (
        done.read == 1 and done.skipped == [] and done.skipped_file is None and not (tmp_path / "out" / "skipped.jsonl").exists()
    )


def test_images_keep_their_bytes_and_broken_ones_are_listed(tmp_path):
    jpeg, png = picture(), picture(kind="PNG")
    bomb = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + b"\0\0\0\0"
    source = put(
        tmp_path / "in", cat__a_dot_jpg=jpeg, dog__big__b_dot_png=png, c_dot_gif=picture(kind="GIF"), cat__cut_dot_jpg=jpeg[: len(jpeg) // 2],
        cat__cut_dot_png=png[:-40], cat__text_dot_jpg="not an image", cat__zero_dot_jpg=b"", cat__bomb_dot_png=bomb,
    )  # fmt: skip
    done, rows = read(tmp_path, source)
    assert done.corpus.kind == "image"
    assert {name: (row["label"], row["format"]) for name, row in rows.items()} == {
        "cat/a.jpg": ("cat", "JPEG"), "dog/big/b.png": ("dog/big", "PNG"), "c.gif": (None, "GIF")
    }  # fmt: skip
    assert rows["cat/a.jpg"]["image"] == jpeg and (rows["cat/a.jpg"]["width"], rows["cat/a.jpg"]["height"]) == (40, 30)
    assert listed(done).keys() == {"cat/cut.jpg", "cat/cut.png", "cat/text.jpg", "cat/zero.jpg", "cat/bomb.png"}
    assert "truncated" in listed(done)["cat/cut.jpg"] and "cannot identify" in listed(done)["cat/text.jpg"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_truncated_sound_is_noticed(kind, share):
    whole = tone(kind)
    assert sound_facts(whole) == {"sample_rate": 8000, "channels": 1, "frames": 1600, "seconds": 0.2}
    with pytest.raises(ValueError, match="not a whole recording"):
        sound_facts(whole[: int(len(whole) * share)])


def test_sounds_keep_their_bytes(tmp_path):
    source = put(
        tmp_path / "in",
        yes__a_dot_wav=tone(),
        no__b_dot_flac=tone("FLAC"),
        no__c_dot_ogg=tone("OGG"),
        bad_dot_wav="RIFF",
        notes_dot_txt="hi",
    )
    done, rows = read(tmp_path, source)
    assert done.corpus.kind == "sound" and {r["label"] for r in rows.values()} == {"yes", "no"} and len(rows) == 3
    assert rows["yes/a.wav"]["sound"] == tone() and rows["no/b.flac"]["seconds"] == 0.2
    assert listed(done).keys() == {"bad.wav", "notes.txt"}


def archive(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                tar.addfile(info)
            else:
                data = content if isinstance(content, bytes) else content.encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_a_webdataset(tmp_path):
    jpeg = picture()
    first = [
        ("x/001.jpg", jpeg),
        ("x/001.cls", "3\n"),
        ("x/001.json", json.dumps({"width": 40, "tags": ["a"], "who": None})),
        ("x/002.jpg", jpeg),
    ]
    second = [
        ("x/002.cls", "5"),
        ("x/002.seg.png", picture(kind="PNG")),
        ("x/003.txt", "a caption"),
        ("x/003.json", json.dumps({"width": 1.5, "late": 1})),
    ]
    source = archive(tmp_path / "a.tar", first + second)
    done, rows = read(tmp_path, source)
    assert list(rows) == ["a.tar/x/001", "a.tar/x/002"] and done.corpus.kind == "image"
    one, two = rows.values()
    assert (
        one["image"] == jpeg and one["label"] == "3" and one["width"] == 40.0 and one["tags"] == ["a"] and one["seg_png"] is None
    )
    assert two["label"] == "5" and two["seg_png"].startswith(b"\x89PNG") and listed(done) == {"a.tar/x/003": "no image"}
    _, texts = read(tmp_path, source, kind="text")
    assert texts["a.tar/x/003"]["text"] == "a caption" and texts["a.tar/x/003"]["late"] == 1


def test_members_that_lead_out_of_a_tar_are_listed_and_nothing_is_written(tmp_path):
    members = [
        ("../../evil.txt", "out"), ("/etc/evil.txt", "abs"), ("ok.txt", "fine"), ("a/../../evil2.txt", "out"), ("link.txt", (tarfile.SYMTYPE, "/etc/passwd")),
        ("hard.txt", (tarfile.LNKTYPE, "ok.txt")), ("dev.txt", (tarfile.CHRTYPE, "")), ("dir", (tarfile.DIRTYPE, "")), ("dir/b.txt", "also"),
    ]  # fmt: skip
    before = set(tmp_path.rglob("*"))
    done, rows = read(tmp_path, archive(tmp_path / "a.tar", members))
    assert {name: row["text"] for name, row in rows.items()} == {"a.tar/ok": "fine", "a.tar/dir/b": "also"}
    reasons = listed(done)
    assert len(reasons) == 6 and sum("leads out" in r for r in reasons.values()) == 3
    assert "links are not followed" in reasons["a.tar/link.txt"] and reasons["a.tar/dev.txt"] == "not an ordinary file"
    assert not [p for p in tmp_path.rglob("*evil*") if p not in before]


def test_tars_that_break_off_or_are_none(tmp_path):
    members = [(f"{i:03}.txt", "text " * 200) for i in range(50)] + [
        ("050.txt", b"\x00\xff" * 20),
        ("051.json", "{bad"),
        ("000.txt", "again"),
    ]
    (tmp_path / "in").mkdir()
    whole = archive(tmp_path / "in" / "a.tar", members).read_bytes()
    (tmp_path / "in" / "b.tar").write_bytes(whole[:20_000])
    archive(tmp_path / "in" / "c.tar.gz", members[:3], "w:gz")
    (tmp_path / "in" / "d.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "in" / "e.tar").write_bytes(b"")
    done, rows = read(tmp_path, tmp_path / "in")
    reasons = listed(done)
    assert (
        sum(name.startswith("a.tar") for name in rows) == 51 and "a.tar/000#2" in rows
    )  # a key that comes back is kept and listed
    assert 10 <= sum(name.startswith("b.tar") for name in rows) < 20 and "breaks off" in reasons["b.tar"]
    assert sum(name.startswith("c.tar.gz") for name in rows) == 3
    damaged = bytearray(whole)
    damaged[1536 * 5 : 1536 * 5 + 512] = b"\x07" * 512  # the sixth header
    (tmp_path / "f.tar").write_bytes(damaged)
    cut, kept = read(tmp_path, tmp_path / "f.tar")
    assert len(kept) == 5 and "a damaged header" in listed(cut)["f.tar"]
    assert {"d.tar", "e.tar", "a.tar/050.txt", "a.tar/051.json", "a.tar/000"} <= reasons.keys()


def test_a_reader_can_be_chosen(tmp_path):
    source = put(tmp_path / "in", a_dot_py="x = 1", b_dot_txt="words")
    _, rows = read(tmp_path, source, reader=use("reader", "text"))
    assert rows.keys() == {"a.py", "b.txt"}


def test_images_in_parquet_as_the_hub_has_them(tmp_path):
    import pyarrow as pa

    table = pa.table({"image": [{"bytes": picture(), "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}], "label": [0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    done, rows = read(tmp_path, tmp_path / "a.parquet")
    assert (
        rows["a.parquet#0"]["image"] == picture() and listed(done) == {"a.parquet#1": "no image"} and done.corpus.kind == "image"
    )
