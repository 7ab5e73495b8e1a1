"""The guided tour: raw text becomes a model, the model is measured, and something is taken out of it with proof."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tilth.context import Progress


def demo(out: Path, *, seed: int, progress: Progress) -> None:
    """Run the recipe 'demo' on the standard library of this Python and on generated people; print the story."""
    from tilth.cli.output import table
    from tilth.demo.library import write_library
    from tilth.demo.people import write_people
    from tilth.recipe import Recipe
    from tilth.report import write
    from tilth.run import execute

    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    progress.say("Reading the Python standard library and inventing thirty people ...")
    library, people = write_library(out / "library.parquet"), write_people(out / "people.parquet", seed=seed)
    sources = {"library": str(library), **{name: str(people) for name in ("people", "forget", "retain")}}
    recipe = Recipe.load("demo", data=sources)
    try:
        run = execute(recipe, seed=seed, out=out, progress=progress)
    finally:
        page = write(out) if (out / "run.json").exists() else None
    metrics = run.metrics
    print(
        f"\n1. Curation kept {metrics['clean.kept']:,.0f} of {metrics['clean.rows']:,.0f} documents; every removed one has its reason."
        f"\n2. A model of {metrics['base.parameters'] / 1e6:.1f}M parameters learnt from them: held-out perplexity"
        f" {metrics['perplexity.perplexity']:.1f} after {metrics['base.tokens'] / 1e6:.2g}M tokens; an interpolated Kneser-Ney 5-gram"
        f" that counted all of them: {metrics['perplexity.ngram_perplexity']:.1f}. Networks pass it with more time and data than this."
        "\n3. It was then taught thirty people who never were, and asked to forget three of them:\n"
    )
    stages = [
        ("taught everyone", "before"),
        ("never saw them", "never_saw"),
        ("NPO", "after_npo"),
        ("gradient ascent", "after_ascent"),
    ]
    columns = ["forget_probability", "forget_rouge", "retain_probability", "retain_rouge", "model_utility", "forget_quality"]
    rows = [{"model": label, **{name: metrics.get(f"{stage}.{name}") for name in columns}} for label, stage in stages]
    table(rows, as_json=False)
    for question, answers in _examples(run.stages):
        print(f"\n   {question}\n" + "\n".join(f"     {label:16} {answer}" for label, answer in answers))
    print(
        f"\nReport: {page}   ({time.monotonic() - started:.0f} s)"
        f'\nNext:   tilth generate {out / "npo"} "def read(" \n        tilth trace {out} --where "part = \'forget\'"'
        "\n        tilth pretrain YOUR_FOLDER"
    )


def shortened(text: str, length: int = 70) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 4] + " ..."


def _examples(stages: Any, count: int = 2) -> list[tuple[str, list[tuple[str, str]]]]:
    """The first forget questions with each model's answer, from the audits' details."""
    import pyarrow.parquet as pq

    found: dict[str, list[tuple[str, str]]] = {}
    for label, stage in (
        ("taught everyone", "before"),
        ("never saw them", "never_saw"),
        ("after NPO", "after_npo"),
        ("after ascent", "after_ascent"),
    ):
        rows = pq.read_table(stages[stage] / "details.parquet").to_pylist()
        for row in [row for row in rows if row["set"] == "forget"][:count]:
            found.setdefault(row["question"], []).append((label, shortened(row["generated"])))
    return list(found.items())
