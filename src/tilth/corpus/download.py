"""Fetching one file over HTTP: checksum verified before it has its name, never outside its folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from tilth.context import Progress
from tilth.errors import TilthError

_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, folder: Path, name: str, sha256: str, progress: Progress | None = None) -> Path:
    """folder/name with the content of `url`; nothing is fetched when it is there with that checksum.

    Raises TilthError when the address cannot be reached or what came is not what the checksum says; nothing is left then.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise TilthError(f"'{name}' is not a plain file name", where=url)
    if not url.startswith(("https://", "http://")):
        raise TilthError("only http and https addresses are fetched", where=url)
    target = folder / name
    if target.is_file() and sha256_of(target) == sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f"{name}.", suffix=".partial", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            found = _fetch(url, file, progress or Progress())
        if found != sha256:
            hint = (
                f"Expected SHA-256 {sha256}, got {found}. The file has changed at its source, or the transfer was tampered with."
            )
            raise TilthError("what was downloaded is not what is expected", where=url, hint=hint)
        Path(partial).replace(target)
    finally:
        Path(partial).unlink(missing_ok=True)
    return target


def _fetch(url: str, file: IO[bytes], progress: Progress) -> str:
    """Write the content of `url` to `file`; its SHA-256."""
    checksum, done = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            length = answer.headers.get("Content-Length")
            progress.start(f"downloading {url}", float(length) if length else None, "bytes")
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                checksum.update(chunk)
                done += len(chunk)
                progress.update(done)
            if length and done < int(length):
                raise TilthError(f"the transfer broke off after {done} of {length} bytes", where=url, hint="Try again.")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise TilthError(f"cannot be downloaded: {reason}", where=url, hint="Check the network.") from None
    finally:
        progress.end()
    return checksum.hexdigest()
