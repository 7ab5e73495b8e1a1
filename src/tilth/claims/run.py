"""Run a claim: every arm under every seed, then the judge, then the evidence.

Notable: all arms are read and checked before the first one runs; arms share whatever stages they have in common through
the store, so a target model that twelve arms unlearn is trained once per seed, also by arms that run side by side: a lock lets
one of them make it and the others wait.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

from tilth.claims.evidence import write_evidence
from tilth.claims.judge import judge
from tilth.claims.systems import evidence_name, read_verdict
from tilth.context import Progress
from tilth.errors import TilthError
from tilth.recipe import Recipe
from tilth.run import Run, execute


def run_claim(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    seeds: int | None = None,
    out: Path = Path("evidence"),
    runs: Path = Path("runs"),
    store: Path | None = None,
    scale: str = "cpu",
    jobs: int = 1,
    modules: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Run the claim of a recipe, write its evidence into `out` and return the file.

    seeds: how many, from 0; the claim's own number if None (fewer can refute a claim and not confirm it). jobs: how many runs of an arm
    go on at a time, each in a process of its own that first imports `modules` (methods from elsewhere) and says nothing meanwhile.
    recipe: one that is loaded (and perhaps overridden), or what Recipe.load takes. runs: receives a run folder per arm and
    seed, NAME/ARM-SEED.
    Raises TilthError if the recipe makes no claim, and what a stage raises: there is evidence of whole claims only.
    """
    progress = progress or Progress()
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, scale=scale)
    claim = base.claim
    if claim is None:
        raise TilthError(
            "this recipe makes no claim", where=str(base.file or base.name), hint="Add a section 'claim:', or use 'tilth run'."
        )
    count = claim.seeds if seeds is None else seeds
    if count < 1:
        raise TilthError(f"a claim cannot be run with {count} seeds", where="--seeds", hint="Give 1 or more.")
    name = evidence_name(base.system) if base.system is not None else base.name
    path = out / f"{name}.json"
    if path.exists():
        read_verdict(path)  # what was tried is carried over from it: better to know now than after hours that it is broken
    arms = {arm: _arm(base, changes) for arm, changes in claim.arms.items()}
    # Seeds outside: whatever arms share is made just before it is needed again.
    tasks = [_Task(arm, seed, runs / name / f"{arm}-{seed}", store, scale) for seed in range(count) for arm in arms]
    done: dict[str, dict[int, Run]] = {arm: {} for arm in arms}
    for task, run in zip(tasks, _each(tasks, base, claim.arms, jobs, modules, progress), strict=True):
        done[task.arm][task.seed] = run
    metrics = {arm: {seed: run.metrics for seed, run in by_seed.items()} for arm, by_seed in done.items()}
    records = [run.record for by_seed in done.values() for run in by_seed.values()]
    return write_evidence(
        path,
        system=base.system,
        recipe=base.name,
        tree=base.tree,
        claim=claim,
        metrics=metrics,
        judgement=judge(metrics, claim.expectations, seeds=claim.seeds),
        seconds=sum({stage["key"]: stage["seconds"] for record in records for stage in record["stages"]}.values()),
        data=_data(records),
        scale=scale,
    )


@dataclass(frozen=True)
class _Task:
    """One arm under one seed: where it runs, and which store it shares."""

    arm: str
    seed: int
    folder: Path
    store: Path | None
    scale: str

    def __call__(self, base: Recipe, changes: Mapping[str, Any], progress: Progress | None = None) -> Run:
        recipe = _arm(base, changes)
        return execute(recipe, seed=self.seed, out=self.folder, store=self.store, progress=progress, scale=self.scale)


def _each(
    tasks: Sequence[_Task],
    base: Recipe,
    arms: Mapping[str, Mapping[str, Any]],
    jobs: int,
    modules: Sequence[str],
    progress: Progress,
) -> Iterator[Run]:
    """The runs in order; the first that fails ends those that wait."""
    if jobs == 1:
        for number, task in enumerate(tasks, 1):
            progress.say(f"arm '{task.arm}', seed {task.seed} ({number} of {len(tasks)})")
            yield task(base, arms[task.arm], progress)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (modules,)) as pool:
        waiting = [pool.submit(task, base, arms[task.arm]) for task in tasks]
        try:
            for number, (task, future) in enumerate(zip(tasks, waiting, strict=True), 1):
                run = future.result()
                progress.say(f"arm '{task.arm}', seed {task.seed} is done ({number} of {len(tasks)})")
                yield run
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(modules: Sequence[str]) -> None:
    """What a process does first."""
    Thread(target=_end_with_parent, daemon=True).start()
    for module in modules:
        import_module(module)


def _end_with_parent() -> None:
    """A claim that is killed takes its arms along, as if each had been told to stop: training leaves a checkpoint."""
    parent = parent_process()
    assert parent
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # training, which stops by itself and must not be told twice
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)  # else it would wait for another arm from a parent that is no more


def _arm(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe as it was loaded (its scale and overrides are in its tree), with what the arm changes."""
    return replace(Recipe.load(base.tree, overrides=changes), name=base.name, file=base.file)


def _data(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each thing that was read, once, without where this machine keeps it."""
    entries: list[dict[str, Any]] = []
    for record in records:
        for entry in record["data"]:
            shown = {key: entry.get(key) for key in ("name", "source", "where", "rows", "fingerprint", "licence")}
            if shown not in entries:
                entries.append(shown)
    return entries
