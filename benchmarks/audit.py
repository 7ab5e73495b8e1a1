"""Seconds of a whole audit of a model of 5 million parameters over TOFU forget10, beside the three minutes it may take.

Run: TILTH_DATA=... python -m benchmarks.audit [--limit 100 --steps 600 --store DIR]
The target is trained on TOFU without 200 rows that serve as holdout set, the gold model without forget10 besides, and the audited model
is the target after some steps of NPO; none of that is timed. Timed is what `tilth audit` does with all sets given: reading the
data, all sections for the audited model, the one before and gold, and the page. Recorded too: seconds of each section, and
processor seconds, which a busy machine does not stretch as much.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.common import record
from tilth.backbones.folder import load
from tilth.recipe import Recipe
from tilth.report.audit import write_audit
from tilth.run import execute

LIMIT_SECONDS = 180.0
TOFU = "tofu"
ROWS = {
    "everyone": "split = 'full' AND (index < 3400 OR index >= 3600)",
    "others": "split = 'full' AND index < 3400",
    "going": "split = 'forget10'",
}
SETS = {
    "forget": "split = 'forget10_perturbed'",
    "retain": "split = 'retain_perturbed'",
    "holdout": "split = 'full' AND index >= 3400 AND index < 3600",
    "real_authors": "split = 'real_authors_perturbed'",
    "world_facts": "split = 'world_facts_perturbed'",
}


def models(steps: int, store: Path, folder: Path) -> dict[str, Path]:
    """before, gold and the audited model."""
    answers = {"answers": {"length": 128}}
    target = {
        "data": "everyone", "tokenizer": "words", "batches": answers, "objective": "causal", "budget": {"steps": steps},
        "backbone": {"causal_lm": {"width": 256, "depth": 4, "heads": 4, "context": 256}},
        "training": {"lr": 2e-3, "batch_size": 16},
    }  # fmt: skip
    unlearned = {
        "model": "before", "forget": "going", "retain": "others", "method": "npo", "batches": answers, "budget": {"steps": 10},
        "training": {"lr": 1e-4, "batch_size": 8},
    }  # fmt: skip
    tree = {
        "data": {name: {"source": TOFU, "where": where} for name, where in ROWS.items()},
        "stages": {
            "words": {
                "tokenizer": {"data": ["everyone"], "columns": ["question", "answer"], "method": {"bpe": {"vocab_size": 8192}}}
            },
            "before": {"pretrain": target},
            "gold": {"pretrain": {"like": "before", "data": "others"}},
            "audited": {"unlearn": unlearned},
        },
    }
    done = execute(Recipe.load(tree), out=folder / "models", store=store)
    return {name: done.model(name) for name in ("before", "gold", "audited")}


def audit(made: dict[str, Path], limit: int, store: Path, folder: Path) -> Path:
    """What `tilth audit` does; gives the JSON."""
    settings = {**{name: name for name in SETS}, "gold": str(made["gold"]), "before": str(made["before"]), "limit": limit}
    tree = {
        "data": {name: {"source": TOFU, "where": where} for name, where in SETS.items()},
        "stages": {"audit": {"evaluate": {"model": str(made["audited"]), "benchmark": {"audit": settings}}}},
    }
    done = execute(Recipe.load(tree), out=folder / "audit", store=store)
    return write_audit(done.stages["audit"], folder / "audit")[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--store", type=Path, help="keeps the models, so that a second run need not train them")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = models(chosen.steps, chosen.store or folder / "store", folder)
        started, busy = time.perf_counter(), time.process_time()
        kept = audit(made, chosen.limit, folder / "fresh", folder)
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        about = json.loads(kept.read_text(encoding="utf-8"))
        size = sum(parameter.numel() for parameter in load(made["audited"]).model.parameters())
    sections = {section["name"]: section.get("seconds") for section in about["sections"]}
    record(
        "audit", seconds, LIMIT_SECONDS, "the limit", "s", 1,
        cpu_seconds=round(cpu, 1), parameters=size, rows_of_each_set=chosen.limit, section_seconds=sections,
    )  # fmt: skip


if __name__ == "__main__":
    main()
