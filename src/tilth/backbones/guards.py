"""Guards at rest: which method with which settings (guard.json), and what it learnt (guard.safetensors)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tilth.errors import TilthError
from tilth.registry import Configured, configure, plain

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel
    from tilth.contracts import Guard

KIND = "unlearn"


def save(guard: Guard, folder: Path) -> None:
    """Write the guard into a new folder."""
    folder.mkdir()
    tensors, facts = guard.state()
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, folder / "guard.safetensors"
    )
    (folder / "guard.json").write_text(
        json.dumps({"method": plain(guard.configured), "facts": facts}, ensure_ascii=False), encoding="utf-8"
    )


def load(folder: Path, text_model: TextModel) -> Guard:
    """The guard in a folder, ready to act on `text_model`. Raises TilthError: a guarded model is not loaded without its guard."""
    try:
        said = json.loads((folder / "guard.json").read_text(encoding="utf-8"))
        method: Configured = configure(KIND, said["method"])
        guard: Guard = method.build()
        guard.configured = method
        guard.restore(load_file(folder / "guard.safetensors"), said["facts"], text_model)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise TilthError(
            f"the model's guard cannot be read: {type(error).__name__}: {error}".splitlines()[0],
            where=str(folder),
            hint="Guard the model again, or delete this folder to use the model without it, knowing what it then says.",
        ) from error
    return guard
