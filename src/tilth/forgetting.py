"""Exact forgetting: back to the last checkpoint that is clean of some rows, and on from there without them.

Notable: what comes out is, bit for bit, the model that training from the start without those rows gives; that no forgotten
row was read is computed for every position of the run; what still holds them (later stages, tokenisers, sources on disk) is
named, not passed over in silence.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilth.context import Context, Progress
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.registry import Configured, references
from tilth.run import context_of, read_run
from tilth.stages.exact import train_again
from tilth.stages.pretrain import Pretrain
from tilth.store import write_json
from tilth.tracing import rows_where

MARK = "tainted.json"


def forget_rows(folder: Path, where: str, out: Path, *, progress: Progress | None = None, purge: bool = False) -> dict[str, Any]:
    """Forget the rows `where` a predicate holds in every model a run has trained; new models lie in out/STAGE/model.

    Returns what is also written to out/forgotten.json: `models` (stage, rows, first_step, clean_step, steps, redone, seconds,
    verified), `corpora` (uri, rows, version before and after), `tainted` (stages whose results still come from the rows),
    `kept` (what else has read them and was not made anew). purge: delete what is tainted instead of marking it.
    Raises TilthError when no data of the run has such rows, or when nothing is left to train on.
    """
    record = read_run(folder)
    progress = progress or Progress()
    out.mkdir(parents=True, exist_ok=True)
    redone: dict[str, Path] = {}
    models: list[dict[str, Any]] = []
    matched, unfit = False, None
    for entry in record["stages"]:
        if entry["kind"] != "pretrain":
            continue
        configured, context = context_of(folder, entry["name"])
        stage: Pretrain = configured.build()
        try:
            corpus = context.corpus(stage.data)
            rows, _ = rows_where(corpus, where, corpus.count())
        except TilthError as error:  # another stage's data may have the columns this one's lacks
            unfit, rows = error, []
        matched |= bool(rows)
        if rows or stage.start in redone:
            context = replace(context, inputs={**context.inputs, **redone}, progress=progress)
            made = train_again(stage, context, rows, out / entry["name"], fresh=stage.start in redone)
            models.append({"stage": entry["name"], **made})
            if made["redone"]:
                redone[entry["name"]] = out / entry["name"] / "model"
    if not matched:
        raise unfit or TilthError(f"no training stage's data has a row where {where}", where=str(folder))
    tainted, kept = _descent(folder, record, set(redone), where)
    corpora = [] if not models else _delete(record, where, purge)
    for entry in record["stages"]:
        if entry["name"] in tainted and Path(entry["folder"]).exists():
            if purge:
                shutil.rmtree(entry["folder"])
            else:
                write_json(Path(entry["folder"]) / MARK, {"where": where, "redone_in": str(out), "stage": entry["name"]})
    said: dict[str, Any] = {
        "run": str(folder),
        "where": where,
        "models": models,
        "corpora": corpora,
        "tainted": sorted(tainted),
        "kept": kept,
    }
    said |= {"purged": purge, "sources": sorted({entry["source"] for entry in record["data"]})}
    write_json(out / "forgotten.json", said)
    return said


def _descent(folder: Path, record: dict[str, Any], redone: set[str], where: str) -> tuple[set[str], list[str]]:
    """Stages whose results descend from models that were made again; and what else has read the rows and stays as it is."""
    tainted, kept = set(redone), list[str]()
    for entry in record["stages"]:
        configured, context = context_of(folder, entry["name"])
        if any(target in tainted for _, target in references(configured)):
            tainted.add(entry["name"])
        elif entry["name"] not in tainted and entry["kind"] != "pretrain" and _reads(configured, context, where):
            kept.append(f"{entry['name']} ({entry['kind']}) has read the rows and was not made anew")
    return tainted, kept


def _reads(configured: Configured, context: Context, where: str) -> bool:
    """Whether any corpus a stage names has such rows."""
    for mark, target in references(configured):
        if mark.gives == "corpus" and target in context.corpora and _matching(context.corpora[target], where):
            return True
    return False


def _matching(corpus: Corpus, where: str) -> int:
    try:
        return corpus.filter(where).count()
    except TilthError:
        return 0


def _delete(record: dict[str, Any], where: str, purge: bool) -> list[dict[str, Any]]:
    """Delete the rows from every corpus of the run: a new version each, which its history shows."""
    folders = [entry["folder"] for entry in record["data"]]
    folders += [entry["folder"] for entry in record["stages"] if entry["gives"] == "corpus"]
    done = []
    for uri in dict.fromkeys(str(Path(folder) / "corpus.lance") for folder in folders):
        corpus = Corpus.open(uri)
        if not _matching(corpus, where):
            continue
        before, count = corpus.version, corpus.filter(where).delete(where)
        if purge:
            corpus = Corpus.open(uri)
            corpus.drop_history()
        done.append({"uri": uri, "rows": count, "version_before": before, "version_after": Corpus.open(uri).version})
    return done
