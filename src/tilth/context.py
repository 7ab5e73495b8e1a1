"""What a running stage sees of the world: its folder, its inputs, the seed, and where to say how far it is.

Notable: exhibits are how stages speak to the report: a table, curves or examples as plain JSON, rendered by anyone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilth.errors import TilthError

if TYPE_CHECKING:
    from tilth.corpus import Corpus


class Progress:
    """Told how far a stage is; this one says nothing. The command line shows bars or lines (cli.progress)."""

    def start(self, task: str, total: float | None, unit: str) -> None:
        """A task begins; total in units (steps, documents ...), None when unknown."""

    def update(self, done: float, **shown: float) -> None:
        """`done` units of the task are done; shown: figures worth a glance (loss, tokens per second)."""

    def end(self) -> None:
        """The task is over."""

    def say(self, line: str) -> None:
        """A line worth keeping on the screen."""


@dataclass
class Context:
    """folder: where this stage writes. seed: of this run. inputs: reference -> folder of what it names.

    corpora: reference -> Corpus (already filtered by the recipe's `where`).
    keys: reference -> digest of what made it, for caches that depend on an input's content.
    first: whether this process writes what the stage makes (under torchrun all train, one writes).
    cache(name, parts, make): a folder shared by all runs with the same parts, made once by calling make(folder).
    """

    folder: Path
    seed: int = 0
    inputs: Mapping[str, Path] = field(default_factory=dict)
    corpora: Mapping[str, Corpus] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    shared: Path | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    first: bool = True

    def corpus(self, reference: str) -> Corpus:
        """The corpus a CorpusRef names: an entry of `data:` or a stage that gives one."""
        if reference in self.corpora:
            return self.corpora[reference]
        raise TilthError(
            f"'{reference}' is not data this stage can read", hint="Name an entry of 'data:' or a stage that gives a corpus."
        )

    def model(self, reference: str) -> Path:
        """The folder of the model a ModelRef names; a Hub id comes back as it is."""
        return self.inputs.get(reference, Path(reference))

    def tokenizer(self, reference: str) -> Path:
        """The folder of the tokeniser a TokenizerRef names (a model's folder holds one too)."""
        return self.inputs.get(reference, Path(reference))

    def cache(self, name: str, parts: Any, make: Callable[[Path], None]) -> Path:
        """A folder whose content is a function of `parts` (JSON), shared by all stages and runs: made once."""
        from tilth.store import keyed_folder

        return keyed_folder(self.shared or self.folder / "shared", name, parts, make)

    def exhibit(self, kind: str, title: str, **content: Any) -> None:
        """Add something to the report. kind and content:

        table: columns [str], rows [[value]], note str; curves: series {name: [[x, y]]}, x str, y str, log bool;
        examples: columns [str], rows [[str]] (long texts, shown one below another); note: text str;
        picture: png str (base64), note str.
        """
        if not self.first:
            return
        with (self.folder / "exhibits.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "title": title, **content}, ensure_ascii=False) + "\n")


def exhibits(folder: Path) -> Sequence[dict[str, Any]]:
    """All exhibits a stage left in its folder."""
    path = folder / "exhibits.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
