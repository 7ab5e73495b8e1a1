"""Train a model again without some rows of its data: from the last checkpoint that is clean of them, bit for bit as from the start."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilth.context import Context
from tilth.contracts import CorpusRef, ModelRef, Stage, method
from tilth.errors import TilthError
from tilth.registry import configure
from tilth.stages.pretrain import Pretrain
from tilth.training.checkpoints import checkpoints
from tilth.training.lineage import Lineage, examples_of, numbered, seen
from tilth.training.without import Without


@method("stage", "exact")
class Exact(Stage):
    """model: what a `pretrain` stage with its own `backbone` made; data: what that was trained on; forget: rows of it, by `id`.

    The older a clean checkpoint, the more is trained again; `training: {checkpoint_every, keep_checkpoints}` of the model's stage
    say how many there are. What `tilth forget` does to a whole run, here as one stage among others.
    """

    gives = "model"

    def __init__(self, *, model: ModelRef, data: CorpusRef, forget: CorpusRef) -> None:
        self.model, self.data, self.forget = model, data, forget

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: steps of the run, first_step that read a row, clean_step gone back to, redone, rows."""
        stage, seed = self.made_by(context)
        ids = context.corpus(self.forget).table(["id"])["id"]
        rows, found_ids = numbered(context.corpus(self.data), ids)
        if missing := len(ids) - len(found_ids):
            strange = sorted(set(ids.to_pylist()).difference(found_ids))[:5]
            raise TilthError(
                f"{missing} of {len(ids)} rows of 'forget' have an id that no row of 'data' has, e.g. {', '.join(strange)}",
                where="exact.forget", hint="Name rows the model was trained on: the same data with a narrower 'where'.",
            )  # fmt: skip
        folder = context.model(self.model).parent
        found = train_again(stage, replace(context, folder=folder, seed=seed), rows, context.folder)
        if not found["redone"]:
            shutil.copytree(folder / "model", context.folder / "model", dirs_exist_ok=True)
        return {
            name: float(found[name])
            for name in ("steps", "first_step", "clean_step", "redone", "rows")
            if found[name] is not None
        }

    def made_by(self, context: Context) -> tuple[Pretrain, int]:
        """The stage that made the model, reading `data`, and its seed.

        Raises TilthError where it is not of that kind, or was trained on something else.
        """
        folder = context.model(self.model)
        record = folder.parent / "stage.json"
        said: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if said.get("kind") != "pretrain" or not said["settings"]["backbone"]:
            raise TilthError(
                f"'{self.model}' was not trained from nothing by a stage of this project", where="exact.model",
                hint="Only what Tilth has trained, and whose checkpoints are there, can be trained again without some rows.",
            )  # fmt: skip
        about = json.loads((folder / "tilth.json").read_text(encoding="utf-8"))
        if about["history"][-1]["data"] != context.corpus(self.data).fingerprint:
            raise TilthError(
                f"'{self.model}' was not trained on '{self.data}', or that has changed since", where="exact.data",
                hint="Name what its stage has under 'data'; which step read which row is computed from that.",
            )  # fmt: skip
        settings = said["settings"] | {"data": self.data, "held_out": None, "tokenizer": str(folder)}
        stage: Pretrain = configure("stage", {"pretrain": settings}).build()
        return stage, int(said["seed"])


def train_again(stage: Pretrain, context: Context, rows: list[int], folder: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Train a stage again in `folder`, without rows (numbers in its data), from its last checkpoint that is clean of them.

    context: that in which the stage ran, its folder included. fresh: from the start, which is itself another model now.
    Returns rows, first_step (None: never read), clean_step, steps, redone, seconds, verified; where nothing is to be done again
    (redone 0), nothing is written. Raises RuntimeError should a forgotten row have been read again.
    """
    began = time.perf_counter()
    torch.manual_seed(context.seed)
    text_model = stage.model(context)
    examples = stage.examples(context, text_model.tokenizer)
    lineage = Lineage.read(context.folder)
    wanted = np.array(rows, dtype=np.int64)
    firsts = [one.first for one in seen(lineage, examples, rows) if one.first is not None]
    first = min(firsts, default=None)
    clean = None if fresh else next((at for at in checkpoints(context.folder) if first is None or at[0] < first), None)
    report: dict[str, Any] = {"rows": len(rows), "first_step": first, "steps": lineage.steps, "verified": True}
    if first is None and not fresh:
        return {**report, "clean_step": lineage.steps, "redone": 0, "seconds": time.perf_counter() - began}
    without = Without(examples, examples_of(examples, wanted)[0])
    if not (folder / "lineage.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if clean is not None:
            shutil.copytree(clean[1], folder / "checkpoints" / clean[1].name, dirs_exist_ok=True)
            shutil.copy(context.folder / "log.jsonl", folder / "log.jsonl")
        shutil.copy(context.folder / "lineage.json", folder / "lineage.json")
    stage.train(replace(context, folder=folder), text_model, without)
    read = np.concatenate(examples.rows(without.ever_drawn(lineage)))
    if np.isin(read, wanted).any():
        raise RuntimeError(f"what was trained again in {folder} still read rows that were to be forgotten")
    clean_step = clean[0] if clean is not None else 0
    return {**report, "clean_step": clean_step, "redone": lineage.steps - clean_step, "seconds": time.perf_counter() - began}
