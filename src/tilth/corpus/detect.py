"""What a file or folder holds, found from names, first bytes and first rows: which reader, which columns, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tilth.corpus import walk
from tilth.corpus.columns import map_columns
from tilth.corpus.decode import decode
from tilth.corpus.readers import csv, folders, hub, jsonl, kuro_siwo, masks, media, parquet, scenes, table, volumes, webdataset
from tilth.corpus.readers.base import Reader
from tilth.corpus.readers.dicom import is_dicom
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError

# Named here and not found by name, so that the cache key of what was read holds the code of every reader.
READERS: dict[str, type[Reader]] = {
    cls.name: cls
    for cls in (
        jsonl.JSONLines, csv.CSV, parquet.Parquet, webdataset.WebDataset, media.Images, media.Sounds, folders.Code, folders.Text,
        hub.Hub, table.Lance, scenes.Scenes, volumes.Volumes, masks.Masks, kuro_siwo.KuroSiwo,
    )
}  # fmt: skip
_SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson", ".json"), "csv": (".csv", ".tsv"), "parquet": (".parquet", ".pq"), "webdataset": (".tar", ".tgz"),
    "images": tuple(media.IMAGE_SUFFIXES), "sounds": tuple(media.SOUND_SUFFIXES), "code": tuple(folders.LANGUAGES),
    "scenes": tuple(scenes.ARRAY_SUFFIXES), "volumes": (".nii", ".dcm", ".dicom"),
    "text": (".txt", ".text", ".md", ".markdown", ".rst", ".html", ".htm", ".xml", ".tex", ".log", ".org", ".adoc"),
}  # fmt: skip
_BY_SUFFIX = {suffix: reader for reader, suffixes in _SUFFIXES.items() for suffix in suffixes}
_PACKED = {".gz": ("jsonl", "csv", "webdataset", "volumes"), ".zst": ("jsonl", "csv")}
_GRIDS = ("images", "scenes", "volumes")  # of whose files another of them may be wanted
_LOOKED_AT = 5000


@dataclass(frozen=True)
class Detected:
    """kind of corpus, name of the reader, columns (our name -> theirs), and in words why."""

    kind: str
    reader: str
    columns: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


def detect(path: str | Path) -> Detected:
    """What a file, folder or `hf:owner/name` holds. Raises TilthError when there is nothing that a reader knows."""
    name, why = reader_of(path)
    reader: Reader = READERS[name](path)
    if reader.gives != "table":
        return Detected(reader.gives, name, {}, why)
    head = reader.peek()
    if head is None:
        raise nothing(reader, str(path))
    mapped = map_columns(head, kind="auto", gives="table", given={}, place=str(path))
    return Detected(mapped.kind, name, mapped.columns, f"{why}; {mapped.why}")


def reader_of(path: str | Path, kind: str = "auto") -> tuple[str, str]:
    """Name of the reader for a file, folder or `hf:owner/name`, and why that one. Raises TilthError when none fits.

    kind: the kind of corpus that is wanted: images, scenes and volumes may come in the same files.
    """
    if str(path).startswith("hf:"):
        return "hub", "it is named on the Hub"
    place = walk.present(path)
    name, why = _reader_of_folder(place) if place.is_dir() else _reader_of_file(place)
    if name in _GRIDS and f"{kind}s" in _GRIDS and name != f"{kind}s":
        return f"{kind}s", "as asked"
    return name, why


def nothing(reader: Reader, place: str) -> TilthError:
    """The error for a source without a row, saying why there is none."""
    skip = SkipList()
    next(iter(reader.batches(skip)), None)
    return TilthError("no row could be read", where=place, hint=skip.first() or "It is empty.")


def family(name: str) -> str:
    """The reader that a file's name asks for; '' when the name does not say."""
    path = Path(name.lower())
    if path.suffix in _PACKED:
        inner = _BY_SUFFIX.get(Path(path.stem).suffix, "")
        return inner if inner in _PACKED[path.suffix] else ""
    return _BY_SUFFIX.get(path.suffix, "")


def _reader_of_file(path: Path) -> tuple[str, str]:
    found = family(path.name)
    if found == "images" and scenes.is_scene(path):
        return "scenes", "it is a TIFF of more than 8 bits or more than three bands"
    if found:
        return found, f"the name ends in {''.join(path.suffixes[-2:]) if path.suffix in _PACKED else path.suffix}"
    with path.open("rb") as file:
        head = file.read(1 << 16)
    for magic, reader in ((b"PAR1", "parquet"), (b"fLaC", "sounds"), (b"\x89PNG", "images"), (b"\xff\xd8\xff", "images")):
        if head.startswith(magic):
            return reader, "its first bytes say so"
    if not head:
        raise TilthError("the file is empty", where=str(path))
    if head[128:132] == b"DICM":
        return "volumes", "its first bytes say so"
    if decode(head)[0] is None and decode(head[: head.rfind(b"\n") + 1])[0] is None:
        hint = "Known: text, code, JSONL, CSV, Parquet, images, scenes, volumes, sound, WebDataset tar, or a folder of these."
        raise TilthError("this is a binary file of a kind that no reader knows", where=str(path), hint=hint)
    return "text", "it is text by its content"


def _reader_of_folder(path: Path) -> tuple[str, str]:
    if (path / "_versions").is_dir():
        return "lance", "it is a corpus already"
    if (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and (path / "dataset_info.json").is_file()):
        return "hub", "it was saved by the package `datasets`"
    if (path / masks.PICTURES).is_dir() and (path / masks.MASKS).is_dir():
        return "masks", f"it has a folder {masks.PICTURES} and a folder {masks.MASKS}"
    found = list(islice(walk.files(path, SkipList()), _LOOKED_AT))
    if not found:
        raise TilthError("the folder is empty", where=str(path), hint="Hidden files and links to nothing are not counted.")
    if kuro_siwo.of_kuro_siwo(name for _, name in found):
        return "kuro_siwo", "most of its TIFF files are named as those of Kuro Siwo"
    counts = Counter(filter(None, (family(name) for _, name in found)))
    more = "+" if len(found) == _LOOKED_AT else ""
    if not counts:
        if is_dicom(found[0][0]):
            return "volumes", f"the first of its {len(found)}{more} files is DICOM"
        return "text", f"none of its {len(found)} files has a known ending, so each is looked at"
    reader, number = counts.most_common(1)[0]
    tiffs = [(file, name) for file, name in found if file.suffix.lower() in scenes.TIFF_SUFFIXES] if reader == "images" else []
    if 2 * len(tiffs) > number and scenes.is_scene(tiffs[0][0]):
        return "scenes", f"{tiffs[0][1]}, the first of its TIFF files, has more than 8 bits or more than three bands"
    return reader, f"{number} of its {len(found)}{more} files are {reader}"
