"""Checkpoints: everything a run needs to go on as if nothing had happened, in safetensors and JSON.

Notable: a checkpoint is written under another name, flushed to the disk and renamed, so it is whole or absent; each file's
hash is in `state.json`, and a damaged checkpoint is passed over for the one before. The layout does not depend on how many
processes wrote it: tensors are stored whole, under the names they have in the objective.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tilth.errors import TilthError
from tilth.store import digest
from tilth.training.ema import Ema
from tilth.training.parallel import World, like, whole

_NAME = re.compile(r"step-(\d+)")


@dataclass
class Trained:
    """What changes while training: the objective with all it owns, the optimiser, the average."""

    objective: nn.Module
    optimiser: torch.optim.Optimizer
    ema: Ema | None

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """(file, name, tensor) of everything that is stored; a tensor with several names comes under the first."""
        known: set[int] = set()
        for name, value in self.objective.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} is {type(value).__name__}: keep the state of an objective in parameters and buffers")
            if id(value) not in known:
                known.add(id(value))
                yield "model", name, value.detach()
        if self.ema:
            yield from (("ema", name, value) for name, value in zip(self.ema.names, self.ema.values, strict=True))

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """(parameter/quantity, tensor) of the optimiser, for parameters that have been updated."""
        names = {id(parameter): name for name, parameter in self.objective.named_parameters()}
        for group in self.optimiser.param_groups:
            for parameter in group["params"]:
                for quantity, value in self.optimiser.state.get(parameter, {}).items():
                    yield f"{names[id(parameter)]}/{quantity}", value


def checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, path) of the whole checkpoints of a run, newest first. Those that are damaged are left out."""
    yield from ((step, path) for step, path in named(folder) if not damage(path))


def named(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of whatever is called a checkpoint, newest first."""
    found = ((_NAME.fullmatch(path.name), path) for path in (folder / "checkpoints").glob("step-*"))
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / "checkpoints" / f"step-{step:08d}"


def damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty when it is whole."""
    try:
        state = read_state(path)
        for name, expected in state["files"].items():
            if _hash(path / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint: step, files, loop (the loop's own). ValueError when it is damaged."""
    said: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if said.get("digest") != digest(said["state"]):
        raise ValueError("state.json is not what was written")
    state: dict[str, Any] = said["state"]
    return state


def save(folder: Path, step: int, trained: Trained, loop: dict[str, Any], world: World, keep: int | None) -> Path:
    """Write checkpoints/step-NNNNNNNN; all processes call. loop: further state as JSON.

    TilthError when it cannot be written (disk full): what is there stays, nothing half-written is left behind.
    """
    final = place(folder, step)
    files: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "random": random_state(world)}
    for file, name, tensor in trained.tensors():
        _collect(files.setdefault(file, {}), name, tensor, world)
    for name, tensor in trained.moments():
        _collect(files["optimiser"], name, tensor, world)
    problem = ""
    if world.first:
        partial = final.with_name(f".{final.name}.partial")
        try:
            _write(partial, step, files, loop)
            if final.exists():  # a damaged one of the same step
                shutil.rmtree(final)
            partial.replace(final)
            _sync(final.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            problem = str(error)
    if world.agree(int(bool(problem))):
        older = next(checkpoints(folder), None)
        kept = f"The checkpoint of step {older[0]} is whole: free" if older else "Free"
        raise TilthError(
            f"the checkpoint of step {step} could not be written: {problem or 'see the first process'}",
            where=str(final),
            hint=f"{kept} some space and run the same command again; it goes on from there.",
        )
    if world.first and keep:
        for _, path in named(folder)[keep:]:
            shutil.rmtree(path)
    return final


def _collect(into: dict[str, Tensor], name: str, tensor: Tensor, world: World) -> None:
    full = whole(tensor.detach())  # every process takes part
    if world.first:
        into[name] = full.cpu().contiguous()


def _write(partial: Path, step: int, files: dict[str, dict[str, Tensor]], loop: dict[str, Any]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    hashes = {}
    for name, tensors in files.items():
        path = partial / f"{name}.safetensors"
        save_file(tensors, path)
        _sync(path)
        hashes[path.name] = _hash(path)
    state = {"step": step, "files": hashes, "loop": loop}
    (partial / "state.json").write_text(json.dumps({"digest": digest(state), "state": state}), encoding="utf-8")
    _sync(partial / "state.json")
    _sync(partial)


def _sync(path: Path) -> None:
    """Have the disk hold what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            state.update(chunk)
    return state.hexdigest()


@torch.no_grad()
def load(path: Path, trained: Trained, world: World) -> dict[str, Any]:
    """Put a whole checkpoint's content in place, bit for bit; returns the loop's state with its `step`."""
    wanted = {(file, name): tensor for file, name, tensor in trained.tensors()}
    for file in ("model", "ema") if trained.ema else ("model",):
        with safe_open(path / f"{file}.safetensors", "pt") as stored:
            names = {name for of, name in wanted if of == file}
            if names != set(stored.keys()):
                example = sorted(names ^ set(stored.keys()))[0]
                raise TilthError(f"this checkpoint belongs to another model (see '{example}')", where=str(path))
            for name in names:
                target, value = wanted[file, name], stored.get_tensor(name)
                if value.shape != target.shape:
                    raise TilthError(f"this checkpoint belongs to another model: '{name}' has another shape", where=str(path))
                target.copy_(like(value, target))
    _load_moments(load_file(path / "optimiser.safetensors"), trained)
    set_random_state(load_file(path / "random.safetensors"), world)
    state = read_state(path)
    return {**state["loop"], "step": state["step"]}


def _load_moments(stored: dict[str, Tensor], trained: Trained) -> None:
    names = {id(parameter): name for name, parameter in trained.objective.named_parameters()}
    parameters = [parameter for group in trained.optimiser.param_groups for parameter in group["params"]]
    number = {names[id(parameter)]: at for at, parameter in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in stored.items():
        name, quantity = key.rsplit("/", 1)
        placed = like(value, parameters[number[name]]) if value.ndim else value
        state.setdefault(number[name], {})[quantity] = placed
    trained.optimiser.load_state_dict({"state": state, "param_groups": trained.optimiser.state_dict()["param_groups"]})


def random_state(world: World) -> dict[str, Tensor]:
    """Every random generator of every process, (processes, ...) each."""
    legacy: Any = np.random.get_state()  # noqa: NPY002
    _, keys, position, has_gauss, gauss = legacy
    version, internal, next_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.append(keys.astype(np.int64), [position, has_gauss])),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "gauss": torch.tensor([gauss, next_gauss is not None, next_gauss or 0.0], dtype=torch.float64),
    }
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return {name: world.gather(state) for name, state in states.items()}


def set_random_state(states: dict[str, Tensor], world: World) -> None:
    """Put back what `random_state` returned."""
    own = {name: state[world.rank].clone() for name, state in states.items()}  # torch ignores where a view begins
    gauss, has_next, next_gauss = own["gauss"].tolist()
    *keys, position, has_gauss = own["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, *internal = own["python"].tolist()
    random.setstate((version, tuple(internal), next_gauss if has_next else None))
    torch.set_rng_state(own["torch"])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], world.device)


@contextmanager
def seeded(seed: int, world: World) -> Iterator[None]:
    """Within it every generator starts from (seed, rank); afterwards each is where it was."""
    alone = World(0, 1, world.device)
    before = random_state(alone)
    numbers = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, world.rank]).generate_state(3)
    torch.manual_seed(int(numbers[0]))
    np.random.seed(int(numbers[1]))  # noqa: NPY002
    random.seed(int(numbers[2]))
    try:
        yield
    finally:
        set_random_state(before, alone)
