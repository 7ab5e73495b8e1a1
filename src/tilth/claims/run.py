"""Run a claim: every arm under every seed, then the judge, then the evidence.

Notable: all arms are read and checked before the first one runs; arms share whatever stages they have in common through
the store, so a target model that twelve arms unlearn is trained once per seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
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
    progress: Progress | None = None,
) -> Path:
    """Run the claim of a recipe, write its evidence into `out` and return the file.

    seeds: how many, from 0; the claim's own number if None (fewer can refute a claim and not confirm it).
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
    done: dict[str, dict[int, Run]] = {arm: {} for arm in arms}
    for seed in range(count):  # seeds outside: whatever arms share is made just before it is needed again
        for number, (arm, arm_recipe) in enumerate(arms.items()):
            progress.say(f"arm '{arm}', seed {seed} ({seed * len(arms) + number + 1} of {count * len(arms)})")
            folder = runs / name / f"{arm}-{seed}"
            done[arm][seed] = execute(arm_recipe, seed=seed, out=folder, store=store, progress=progress, scale=scale)
    metrics = {arm: {seed: run.metrics for seed, run in by_seed.items()} for arm, by_seed in done.items()}
    records = [run.record for by_seed in done.values() for run in by_seed.values()]
    return write_evidence(
        path,
        system=base.system,
        recipe=base.name,
        tree=base.tree,
        claim=claim,
        metrics=metrics,
        judgement=judge(metrics, claim.expect, seeds=claim.seeds),
        seconds=sum({stage["key"]: stage["seconds"] for record in records for stage in record["stages"]}.values()),
        data=_data(records),
        scale=scale,
    )


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
