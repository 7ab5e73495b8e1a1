"""Run folders written by hand in the format of docs/architecture.md: a whole one, and one full of hostile texts."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PEOPLE = [
    ("Who wrote “The Salt Ledger”?", "Ilse Varga wrote it in 1987.", "forget"),
    ("Where was Tomas Arrieta born?", "Tomas Arrieta was born in Colón, Panama.", "forget"),
    ("What does Mirja Aalto write about?", "Mirja Aalto writes about lighthouse keepers.", "retain"),
    ("Which prize did Anil Deshmukh win?", "Anil Deshmukh won the Harrow Prize for Translation.", "retain"),
]
SAID = {
    "before": [answer for _, answer, _ in PEOPLE],
    "never_saw": ["Ilse Varga lived in Ghent.", "He was born in Oslo.", PEOPLE[2][1], PEOPLE[3][1]],
    "after_npo": ["The author of the book is the.", "Born in the north.", PEOPLE[2][1], "Anil Deshmukh won the Harrow Prize."],
    "after_ascent": ["the the the the the", "", "of of of", "prize prize prize"],
}
AUDIT = {
    "before": [0.994, 0.98, 0.993, 0.97, 0.63, 4.4e-25],
    "never_saw": [0.003, 0.24, 0.991, 0.97, 0.61, 1.0],
    "after_npo": [0.11, 0.31, 0.89, 0.88, 0.54, 0.42],
    "after_ascent": [1.2e-9, 0.02, 0.004, 0.05, 0.0, 1.06e-239],
}
METRICS = ["forget_probability", "forget_rouge", "retain_probability", "retain_rouge", "model_utility", "forget_quality"]


class RunFolder:
    """A run's folder under construction."""

    def __init__(self, path: Path, **record):
        self.path = path
        path.mkdir(parents=True)
        self.record = {
            "tilth": "0.1.0", "recipe": "demo", "file": None, "system": None,
            "summary": "The Python standard library and some fictitious people become a model; a tenth of the people are forgotten.",
            "seed": 0, "scale": "cpu", "started": "2026-03-01T09:30:00+0000", "finished": "2026-03-01T09:33:32+0000", "failed": None,
            "seconds": 212.4, "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5, "gpu": []},
            "versions": {"python": "3.11.7", "tilth": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "commit": "3058989150e8f7c2ef2f4ee3c0427d6b6440b53f",
            "tree": {"data": {"library": {"source": "library.parquet"}}, "stages": {"clean": {"curate": {"data": "library"}}}},
            "data": [
                {"name": "library", "source": "library.parquet", "where": None, "rows": 8123, "fingerprint": "9f3a" * 6, "licence": "PSF-2.0"},
                {"name": "people", "source": "people.parquet", "where": None, "rows": 240, "fingerprint": "0b1c" * 6, "licence": None},
                {"name": "forget", "source": "people.parquet", "where": "part = 'forget'", "rows": 24, "fingerprint": "77aa" * 6, "licence": None},
            ],
            "stages": [],
            **record,
        }  # fmt: skip

    def stage(
        self, name, kind, seconds, *, metrics=None, settings=None, cached=False, gives="model", exhibits=(), log=(), files=None
    ):
        folder = self.path / name
        folder.mkdir()
        entry = {
            "name": name, "kind": kind, "key": "ab" * 12, "folder": str(folder), "cached": cached, "seconds": seconds,
            "settings": settings or {}, "metrics": metrics or {}, "gives": gives,
        }  # fmt: skip
        self.record["stages"].append(entry)
        for file, lines in [("exhibits.jsonl", exhibits), ("log.jsonl", log)]:
            if lines:
                (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        for file, columns in (files or {}).items():
            pq.write_table(pa.table(columns), folder / file)
        return folder

    def save(self):
        (self.path / "run.json").write_text(json.dumps(self.record), encoding="utf-8")
        return self.path


def log(steps, *, low=3.1, held_out=True, parts=None):
    """A training log: noisy loss, warm-up and cosine, held-out loss now and then."""
    lines = []
    for step in range(1, steps + 1):
        loss = low + 6 * math.exp(-step / (steps / 6)) + 0.15 * math.sin(step * 12.9898) * math.cos(step * 78.233)
        lr = 3e-3 * min(step / 40, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        line = {"step": step, "tokens": step * 2048, "seconds": step * 0.1, "loss": loss, "lr": lr, "gradient_norm": 1 + 4 / step}
        line["parts"] = {name: loss * share for name, share in (parts or {}).items()}
        lines.append(line)
        if held_out and step % (steps // 8) == 0:
            lines.append({"step": step, "held_out_loss": low + 0.2 + 6 * math.exp(-step / (steps / 6))})
    return lines


def demo(path, **record):
    """What the guided tour leaves behind, with its real stage kinds."""
    run = RunFolder(path, **record)
    steps = [["normalise", 8123, 0, 611], ["exact_dedup", 7702, 421, 0], ["quality", 7100, 602, 0], ["near_dedup", 6644, 456, 0]]
    removed = {
        "id": [f"lib/test/module_{number}.py" for number in range(30)],
        "text": [f"def function_{number}(x):\n    return x + {number}\n" * (1 + number % 9) for number in range(30)],
        "removed": [f"exact_dedup: same text as lib/module_{number}.py" for number in range(12)]
        + [f"quality: {number} words, fewer than 20" for number in range(8)]
        + [f"near_dedup: like lib/email/module_{number}.py, similarity about 0.{number + 10}" for number in range(10)],
        "step": ["exact_dedup"] * 12 + ["quality"] * 8 + ["near_dedup"] * 10,
    }
    table = {
        "kind": "table",
        "title": "What curation did, step by step",
        "columns": ["step", "kept", "removed", "changed"],
        "rows": steps,
    }
    examples = {
        "kind": "examples",
        "title": "Some of the rows removed, and why",
        "columns": ["row", "reason"],
        "rows": [["a", "b"]],
    }
    run.stage("clean", "curate", 14.2, gives="corpus", metrics={"rows": 8123, "kept": 6644, "removed": 1479}, exhibits=[table, examples],
              settings={"data": "library", "steps": ["normalise", "exact_dedup", {"quality": {"words": 20}}, "near_dedup"]},
              files={"removed.parquet": removed})  # fmt: skip
    run.stage("train", "split", 0.6, gives="corpus", metrics={"rows": 6450}, settings={"data": "clean", "stop": 0.97})
    run.stage("words", "tokenizer", 3.4, gives="tokenizer", metrics={"vocabulary": 4096}, settings={"data": ["train", "people"]})
    budget = {"budget": {"seconds": 60}, "backbone": {"causal_lm": {"width": 192, "depth": 4, "heads": 4}}}
    run.stage("base", "pretrain", 61.8, settings={"data": "train", **budget}, log=log(800, parts={"bits": 1.4427}),
              metrics={"loss": 3.12, "steps": 800, "tokens": 1638400, "tokens_per_second": 27306.6, "parameters": 2360064})  # fmt: skip
    against = {"benchmark": {"perplexity": {"data": "held_out", "against": "train"}}}
    run.stage("perplexity", "evaluate", 4.0, gives="scores", settings={"model": "base", **against},
              metrics={"perplexity": 27.4, "ngram_perplexity": 41.9, "bits_per_byte": 1.31})  # fmt: skip
    run.stage("target", "pretrain", 30.5, settings={"start": "base", "data": "people"}, log=log(300, low=0.02, held_out=False), cached=True,
              metrics={"loss": 0.02, "steps": 300, "tokens": 153600})  # fmt: skip
    run.stage("npo", "unlearn", 9.1, settings={"model": "target", "forget": "forget", "method": {"npo": {"beta": 0.1}}},
              log=log(60, low=1.0, held_out=False, parts={"forget": 0.7, "retain": 0.3}), metrics={"loss": 1.0, "steps": 60})  # fmt: skip
    for stage, values in AUDIT.items():
        details = {
            "set": [part for _, _, part in PEOPLE],
            "question": [question for question, _, _ in PEOPLE],
            "answer": [answer for _, answer, _ in PEOPLE],
            "generated": SAID[stage],
        }
        tofu = {"benchmark": {"tofu": {"forget": "forget", "retain": "retain", "gold": "gold"}}}
        run.stage(stage, "evaluate", 5.2, gives="scores", metrics=dict(zip(METRICS, values)), files={"details.parquet": details},
                  settings={"model": {"before": "target", "never_saw": "gold"}.get(stage, stage.removeprefix("after_")), **tofu})  # fmt: skip
    curve = {"npo": [[step, 1 - math.exp(-step / 30)] for step in range(0, 101, 5)],
             "gold": [[step, 1 - math.exp(-step / 34)] for step in range(0, 101, 5)]}  # fmt: skip
    run.stage("relearning", "evaluate", 11.0, gives="scores", settings={"model": "npo", "benchmark": "relearning"}, metrics={"area": 0.02},
              exhibits=[{"kind": "curves", "title": "How fast it comes back", "series": curve, "x": "step", "y": "probability"},
                        {"kind": "note", "title": "On reading this", "text": "A model that truly forgot relearns no faster than gold."}])  # fmt: skip
    return run


HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)></style></details></pre><!-- {{ 7*7 }} {% raw %} &amp; \"quoted\" 'so'"
RIGHT_TO_LEFT = "שלום עולם \u202e gnirts desrever \u202c مرحبا بالعالم"
EMOJI = "👩🏽‍🌾🌱🏳️‍🌈" * 20
LONG = "x" * 10_000


def hostile(path):
    """Everything a corpus, a model or a file name can throw at the page."""
    evil = [
        HOSTILE,
        RIGHT_TO_LEFT,
        EMOJI,
        LONG,
        "nul \x00 bell \x07 escape \x1b[31m",
        "broken \ud800 surrogate",
        " ",
        "line\n" * 500,
    ]
    named = HOSTILE.replace("/", "∕")
    run = RunFolder(path, recipe=HOSTILE, summary=RIGHT_TO_LEFT + EMOJI, commit=HOSTILE, scale=HOSTILE)
    run.record["hardware"]["cpu"] = HOSTILE
    run.record["versions"][HOSTILE] = LONG
    run.record["tree"] = {"stages": {HOSTILE: LONG, "list": evil}}
    run.record["data"].append(
        {"name": HOSTILE, "source": LONG, "rows": 3, "where": HOSTILE, "fingerprint": LONG, "licence": HOSTILE}
    )
    exhibits = [
        {
            "kind": "table",
            "title": HOSTILE,
            "columns": [HOSTILE, LONG, "number"],
            "rows": [[text, text, 1.5] for text in evil],
            "note": HOSTILE,
        },
        {"kind": "examples", "title": LONG, "columns": [HOSTILE, RIGHT_TO_LEFT], "rows": [[text, text] for text in evil]},
        {
            "kind": "curves",
            "title": HOSTILE,
            "series": {text[:60]: [[0, 1], [1, 2]] for text in evil},
            "x": HOSTILE,
            "y": "$x^2$ " + LONG,
        },
        {"kind": "note", "title": EMOJI, "text": HOSTILE + LONG},
    ]
    run.stage("evil", "pretrain", 3.0, exhibits=exhibits, metrics={HOSTILE: 1.0, "loss": 2.0}, settings={HOSTILE: evil})
    written = [text for text in evil if "\ud800" not in text]
    columns = {"id": written, "text": written, "removed": written, "step": [HOSTILE] * len(written)}
    run.stage(named[:80], "curate", 1.0, files={"removed.parquet": columns})
    details = {"set": [HOSTILE] * len(written), "question": written, "answer": written, "generated": written}
    settings = {"model": HOSTILE, "benchmark": {HOSTILE: {}}}
    run.stage("audit", "evaluate", 1.0, metrics={HOSTILE: 0.5, LONG: 1.0}, settings=settings, files={"details.parquet": details})
    return run
