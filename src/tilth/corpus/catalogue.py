"""What a source means: a name of the catalogue, a path, or a data set of the Hub; and the fingerprint of what it holds.

Notable: a bare word that the catalogue knows is always the catalogue's (write ./books for a folder of that name), so a
packaged recipe means the same in every working directory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tilth.context import Progress
from tilth.corpus import walk
from tilth.corpus.download import download, sha256_of
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError, nearest
from tilth.registry import Configured, use


@dataclass(frozen=True)
class Source:
    """Data that can be read. path: file or folder, or 'hf:owner/name'. reader: None when it is to be detected.

    columns: our name -> theirs. kind: '' when it is to be detected. name: of the catalogue, or what the user wrote.
    """

    path: Path | str
    reader: Configured | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    name: str = ""
    kind: str = ""
    page: str = ""
    about: str = ""


@cache
def entries() -> dict[str, dict[str, Any]]:
    """The catalogue: name -> about, file, kind, licence, page, checksum ..."""
    found = yaml.safe_load((Path(__file__).parent / "catalogue.yaml").read_text(encoding="utf-8"))
    return {str(name): dict(entry) for name, entry in found.items()}


def resolve(source: str | Path | Source, *, base: Path | None = None, progress: Progress | None = None) -> Source:
    """Where the data of a name of the catalogue, a path or `hf:owner/name` are, downloading them if need be.

    base: folder that relative paths start from. Raises TilthError: no such path or name, or where to get the data by hand.
    """
    if isinstance(source, Source):
        return source
    name = str(source)
    if name.startswith("hf:"):
        return Source(name, use("reader", "hub"), name=name)
    if name in entries():
        return _named(name, progress)
    path = Path(name).expanduser()
    path = path if path.is_absolute() or base is None else base / path
    if not path.exists() and not path.is_symlink() and "/" not in name and "." not in name:
        hint = nearest(name, list(entries()))
        raise TilthError(f"'{name}' is neither a file or folder nor a name of the catalogue", where=str(path), hint=hint)
    return Source(walk.present(path), name=name)


def _named(name: str, progress: Progress | None) -> Source:
    entry = entries()[name]
    facts = {"licence": entry["licence"], "name": name, "kind": entry["kind"], "page": entry["page"], "about": entry["about"]}
    columns = entry.get("columns", {})
    folder = os.environ.get("TILTH_DATA")
    place = Path(folder).expanduser() / entry["file"] if folder else None
    if place is not None and place.exists():
        return Source(place, None, columns, **facts)
    official = entry.get("download")
    if official:
        store = Path(os.environ.get("TILTH_STORE") or Path.home() / ".cache" / "tilth") / "downloads"
        reader = use("reader", official["reader"]) if "reader" in official else None
        path = download(official["url"], store, official["file"], official["sha256"], progress)
        return Source(path, reader, official.get("columns", columns), **facts)
    if "hub" in entry:
        return Source(f"hf:{entry['hub']['name']}", use("reader", "hub"), entry["hub"].get("columns", columns), **facts)
    wanted = f"{place}" if place is not None else f"{entry['file']} in a folder, and set TILTH_DATA to that folder"
    raise TilthError(
        f"the data of '{name}' are not on this machine",
        where=name,
        hint=f"Get them from {entry['page']} and put them at {wanted}.",
    )


def verify(name: str) -> bool:
    """Whether the file that TILTH_DATA holds for a name of the catalogue has the checksum of the catalogue."""
    return fingerprint(_named(name, None).path) == entries()[name]["sha256"]


def fingerprint(path: str | Path) -> str:
    """SHA-256 of the content: of a file its own, of a folder that of its files' names and contents; of `hf:owner/name` its revision.

    Where a data set lies and when it was copied there make no difference.
    """
    if str(path).startswith("hf:"):
        return hashlib.sha256(f"{path}@{_revision(str(path))}".encode()).hexdigest()
    root = walk.present(path)
    if root.is_file():
        return sha256_of(root)
    whole = hashlib.sha256()
    for file, name in walk.files(root, SkipList()):
        try:
            content = sha256_of(file)
        except OSError as error:
            content = f"unreadable: {error.strerror}"
        whole.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _revision(source: str) -> str:
    """The commit that a data set of the Hub is at."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise TilthError(
            "Hugging Face data sets need the package `datasets`", where=source, hint="pip install 'tilth[hub]'"
        ) from None
    name = source.removeprefix("hf:").partition(":")[0]
    if Path(name).expanduser().exists():
        return fingerprint(name)
    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # the client's own, its HTTP library's, the system's: all mean that the Hub did not say
        reason = str(error).splitlines()[0]
        hint = "Check the name and the network; data that are on this machine: set TILTH_DATA to their folder."
        raise TilthError(f"the Hub cannot be asked: {reason}", where=source, hint=hint) from error
