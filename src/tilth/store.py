"""Folders named by what made them: the same question is answered once, by one process, and survives a kill.

Notable: work happens in `KEY.partial`, which a later run finds and continues (checkpoints live there); the rename to
`KEY` is the commit. A lock beside it makes a second process wait for the first instead of doing the same.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def digest(parts: Any) -> str:
    """24 hexadecimal digits of the SHA-256 of `parts` as canonical JSON."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]


def keyed_folder(store: Path, name: str, parts: Any, make: Callable[[Path], None]) -> Path:
    """store/name-KEY, made by make(folder) unless it is already there. An interrupted `make` gets its folder back."""
    final = store / f"{name}-{digest(parts)}"
    if final.exists():
        return final
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if not final.exists():
            partial = final.with_name(final.name + ".partial")
            partial.mkdir(exist_ok=True)
            make(partial)
            partial.replace(final)
    return final


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def discard(folder: Path) -> None:
    """Forget a stored answer."""
    shutil.rmtree(folder, ignore_errors=True)
