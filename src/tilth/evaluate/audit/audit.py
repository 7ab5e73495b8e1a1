"""The audit itself: every section that the data allow, for the model, the one before and the gold model, into one JSON file.

Notable: a guarded model is measured through its guard and with the guard dropped, for whoever holds the weights can drop it;
what was measured of each model is kept under the content of model, data, settings and code, so an interrupted audit goes on
and audits that share a gold model share its figures; every figure carries the interval that so many examples allow.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tilth import __version__
from tilth.backbones.fingerprint import fingerprint
from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.corpus import Corpus, catalogue
from tilth.environment import commit, hardware, versions
from tilth.errors import TilthError, nearest
from tilth.evaluate.audit import words
from tilth.evaluate.audit.measures import BARE, BEFORE, GOLD, MODEL, Measure, Result, judge
from tilth.evaluate.audit.sections import Given, Section, sections
from tilth.index import sources
from tilth.registry import PositiveInt, Reference, plain, rebuilt
from tilth.store import digest, write_json
from tilth.unlearn.checks import check_sets

FILE = "audit.json"
_SHOWN = 6  # rows of which answers are shown


@method("benchmark", "audit")
class Audit(Benchmark):
    """Everything of the unlearning protocol that the data at hand allow; writes `audit.json`, which `report.audit` makes a page of.

    forget: what was to go. retain: what was to stay. gold: a model that never saw the forget set, the standard everything is
    judged by. before: the model before unlearning. holdout: rows like the forget set that no model was trained on. real_authors,
    world_facts: TOFU's sets of general knowledge. forget_questions, retain_questions, shots: MUSE's, where the sets are passages.
    reference: a model for membership inference by reference. extra, further: data and models for benchmarks with some of their own, by
    the name of the benchmark's setting. only: names of sections, instead of all. limit: at most so many rows of each set are used, evenly spread over it
    (None: all); data of `extra` are used whole.

    A figure that needs what was not given is not left out: the section says what it lacks. metrics: `<section>_<figure>` of the
    model, `<section>_<figure>_without_guard` where it is guarded, and `seconds`. Intervals: see `evaluate.bootstrap`.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef | None = None,
        gold: ModelRef | None = None,
        before: ModelRef | None = None,
        holdout: CorpusRef | None = None,
        real_authors: CorpusRef | None = None,
        world_facts: CorpusRef | None = None,
        forget_questions: CorpusRef | None = None,
        retain_questions: CorpusRef | None = None,
        shots: CorpusRef | None = None,
        reference: ModelRef | None = None,
        extra: dict[str, CorpusRef] = {},  # noqa: B006
        further: dict[str, ModelRef] = {},  # noqa: B006
        only: tuple[str, ...] = (),
        template: Template | None = None,
        limit: PositiveInt | None = 100,
        max_new_tokens: PositiveInt = 128,
    ) -> None:
        named = {
            "forget": forget, "retain": retain, "holdout": holdout, "real_authors": real_authors, "world_facts": world_facts,
            "forget_questions": forget_questions, "retain_questions": retain_questions, "shots": shots, **extra,
        }  # fmt: skip
        models = {GOLD: gold, BEFORE: before, "reference": reference, **further}
        self.whole = set(extra.values())
        self.data = {name: data for name, data in named.items() if data is not None}
        self.models = {name: model for name, model in models.items() if model is not None}
        self.only, self.template, self.limit, self.max_new_tokens = only, template, limit, max_new_tokens
        self.contents: dict[Path, str] = {}  # of models: read once, for they are large

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when forget and retain or holdout overlap, or a section of `only` does not exist."""
        began = time.monotonic()
        self.contents.clear()
        text_model = load(model)
        corpora = {name: context.corpus(data) for name, data in self.data.items()}
        self.check(corpora)
        actors = {MODEL: model, **{name: context.model(self.models[name]) for name in (BEFORE, GOLD) if name in self.models}}
        if text_model.guard is not None:
            actors[BARE] = without_guard(model, context.folder / "without-guard")
        given = Given(
            self.data, self.models, {name: corpus.columns for name, corpus in corpora.items()}, self.max_new_tokens, self.template,
        )  # fmt: skip
        context = self.sampled(context)
        chosen = self.chosen(given)
        found, answers, notices = [], list[dict[str, Any]](), []
        for number, section in enumerate(chosen, start=1):
            context.progress.say(f"audit, {number} of {len(chosen)}: {section.title}")
            told, results = self.section(section, given, actors, context)
            found.append(told)
            answers = answers or side_by_side(results)
            if section.name == "extraction" and (notice := words.never_known(section.measures(given)[0], results)):
                context.progress.say(f"warning: {notice}")
                notices.append(notice)
        shutil.rmtree(context.folder / "without-guard", ignore_errors=True)
        about: dict[str, Any] = {
            "tilth": __version__,
            "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "model": self.model(model, text_model),
            "asked": words.asked(self.data, corpora, self.models, self.limit),
            "done": words.done(text_model.about.get("history"), corpora),
            "notices": notices,
            "sections": found,
            "answers": answers,
            "uncertainty": words.UNCERTAINTY,
            "seconds": round(time.monotonic() - began, 1),
            "hardware": hardware(),
            "versions": versions(),
            "commit": commit(),
        }
        about |= words.conclusion(about)
        write_json(context.folder / FILE, json.loads(json.dumps(about, default=str)))
        context.exhibit("note", "In short", text="\n".join(about["in_short"]))
        self.exhibit(found, context)
        return Scores({**figures(found), "seconds": about["seconds"]})

    def check(self, corpora: Mapping[str, Corpus]) -> None:
        """Sets that must not share a row do not."""
        check_sets(corpora["forget"], corpora.get("retain"))
        if "holdout" in corpora:
            for name in ("forget", "retain"):
                if name not in corpora:
                    continue
                try:
                    check_sets(corpora["holdout"], corpora[name])
                except TilthError as error:
                    what = error.what.replace("forget set", "holdout set").replace("retain set", f"{name} set")
                    raise TilthError(what, hint="A holdout set holds only rows that no model was trained on.") from None

    def sampled(self, context: Context) -> Context:
        """The same world with at most `limit` rows of each set, evenly spread, so that none of its parts is left out."""
        if self.limit is None:
            return context
        corpora = dict(context.corpora)
        for name in set(self.data.values()) - self.whole:
            corpus, count = context.corpus(name), context.corpus(name).count()
            if count <= self.limit:
                continue
            rows = np.linspace(0, count - 1, self.limit).round().astype(np.int64)

            def make(folder: Path, corpus: Corpus = corpus, rows: np.ndarray = rows) -> None:
                some = corpus.take(rows)
                Corpus.write(folder / "corpus.lance", some.to_batches(), some.schema, metadata={"kind": corpus.kind})

            folder = context.cache("audit-rows", {"data": corpus.fingerprint, "rows": self.limit}, make)
            corpora[name] = Corpus.open(folder / "corpus.lance")
        return replace(context, corpora=corpora)

    def chosen(self, given: Given) -> list[Section]:
        """All sections, or those of `only`."""
        known = {section.name: section for section in sections(given)}
        for name in self.only:
            if name not in known:
                raise TilthError(f"an audit has no section '{name}'", where="audit.only", hint=nearest(name, list(known)))
        return [section for name, section in known.items() if not self.only or name in self.only]

    def section(
        self, section: Section, given: Given, actors: Mapping[str, Path], context: Context
    ) -> tuple[dict[str, Any], dict[str, Result]]:
        """A section as JSON, and what was measured of each model."""
        began = time.monotonic()
        told: dict[str, Any] = {
            "name": section.name,
            "title": section.title,
            "asks": section.asks,
            "note": section.noted,
            "measures": [],
        }
        if lacking := section.lacks(given):
            return {**told, "status": "absent", "missing": [lacking], "curves": {}}, {}
        guarded = BARE in actors
        beside = {BEFORE, GOLD} if not section.alone else set()
        if section.attack and GOLD in actors:
            beside = {GOLD}
        who = [name for name in (MODEL, BARE, BEFORE, GOLD) if name in actors and (name in beside or name not in (BEFORE, GOLD))]
        who = [name for name in who if not (section.weights and guarded and name == MODEL)]
        results: dict[str, Result] = {}
        try:
            for name in who:
                key = {"model": self.content(actors[MODEL if name == BARE else name]), "bare": name == BARE}
                results[name] = self.result(section, given, actors[name], key, context)
        except TilthError as error:
            return {**told, "status": "absent", "missing": [f"This could not be measured: {error.what}"], "curves": {}}, {}
        mine = BARE if section.weights and guarded else MODEL
        measures = section.measures(given) or section.found(results[mine])
        told["measures"] = [row for measure in measures if (row := figure(measure, results, mine)) is not None]
        missing = section.remarks(given)
        if section.weights and guarded:
            missing = [*missing, "This attack works on the weights, so the model was measured with its guard dropped."]
        steps = {name: result.details["step"] for name, result in results.items() if "step" in result.details}
        curves = {name: list(map(list, zip(x, results[name].details["probability"], strict=True))) for name, x in steps.items()}
        seconds = round(time.monotonic() - began, 1)
        return {**told, "status": "measured", "missing": missing, "curves": curves, "seconds": seconds}, results

    def result(self, section: Section, given: Given, place: Path, key: dict[str, Any], context: Context) -> Result:
        """What the section's benchmark says of one model, from disk if it was measured before; key: what stands for the model."""
        bench = section.configured(given)

        def content(mark: Reference, name: str) -> str:
            return context.corpus(name).fingerprint if mark.gives == "corpus" else self.content(context.model(name))

        code = digest([path.read_text(encoding="utf-8") for path in sorted(sources(section.benchmark.__module__))])
        parts = {**key, "benchmark": plain(rebuilt(bench, content)), "seed": context.seed}

        def make(folder: Path) -> None:
            scores: Scores = bench.build()(place, replace(context, folder=folder))
            (folder / "metrics.json").write_text(json.dumps(scores.metrics), encoding="utf-8")
            pq.write_table(pa.table(scores.details or {}), folder / "details.parquet")

        folder = context.cache(f"audit-{section.name}", {**parts, "code": code}, make)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return Result(metrics, pq.read_table(folder / "details.parquet").to_pydict())

    def content(self, place: Path) -> str:
        """What stands for a model in keys: a fingerprint of its folder, or its Hub id."""
        if place not in self.contents:
            self.contents[place] = catalogue.fingerprint(place) if place.exists() else f"hub:{place}"
        return self.contents[place]

    def model(self, place: Path, text_model: TextModel) -> dict[str, Any]:
        """Which model this is about."""
        guard = text_model.guard
        return {
            "place": str(place),
            "architecture": type(text_model.model).__name__,
            "parameters": sum(parameter.numel() for parameter in text_model.model.parameters()),
            "fingerprint": fingerprint(text_model.model),
            "guard": {"method": guard.name, "settings": plain(guard.configured)} if guard is not None else None,
        }

    def exhibit(self, found: list[dict[str, Any]], context: Context) -> None:
        """The figures as one table for a run's own report."""
        lines: list[list[Any]] = [
            [section["title"], row["title"], *(cell["value"] if (cell := row["values"].get(who)) else None for who in (MODEL, BEFORE, GOLD)), row["verdict"]]
            for section in found
            for row in section["measures"]
        ]  # fmt: skip
        columns = ["section", "figure", "model", "before", "gold", "judgement"]
        context.exhibit("table", "Audit", columns=columns, rows=lines, note=words.UNCERTAINTY)
        absent = [sentence for section in found for sentence in section["missing"]]
        if absent:
            context.exhibit("note", "What could not be tested", text="\n".join(absent))


def figure(measure: Measure, results: Mapping[str, Result], mine: str) -> dict[str, Any] | None:
    """A figure of every model that has it, and the judgement; None where the audited model has none."""
    gold = results.get(GOLD)
    values = {who: found.plain() for who, result in results.items() if (found := measure.of(result, gold)) is not None}
    if mine not in values:
        return None
    judged = judge(measure, results, mine)
    bare = judge(measure, results, BARE) if BARE in results and mine != BARE else None
    return {
        "name": measure.name,
        "title": measure.title,
        "meaning": measure.meaning,
        "about": measure.about,
        "values": values,
        "verdict": judged.verdict,
        "sentence": judged.sentence,
        "difference": judged.difference.plain() if judged.difference else None,
        "bare": {"verdict": bare.verdict, "sentence": bare.sentence} if bare else None,
    }


def figures(found: list[dict[str, Any]]) -> dict[str, float]:
    """Section and figure -> number of the audited model."""
    named = {}
    for section in found:
        for row in section["measures"]:
            for who, ending in ((MODEL, ""), (BARE, "_without_guard")):
                if who in row["values"]:
                    named[f"{section['name']}_{row['name']}{ending}"] = row["values"][who]["value"]
    return named


def side_by_side(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A few questions about the forget set with what each model said; nothing where the section kept no answers."""
    first = next(iter(results.values()), None)
    if first is None or not {"question", "answer", "generated", "set"} <= first.details.keys():
        return []
    rows = [row for row, name in enumerate(first.details["set"]) if name in ("forget", "knowmem_forget", "verbmem_forget")]
    rows = (
        [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).astype(int)).tolist()]
        if rows
        else []
    )
    return [
        {
            "question": first.details["question"][row],
            "right": first.details["answer"][row],
            "said": {who: result.details["generated"][row] for who, result in results.items()},
        }
        for row in rows
    ]  # fmt: skip


def without_guard(model: Path, folder: Path) -> Path:
    """The same model folder without its guard, as links: what whoever drops the guard has."""
    folder.mkdir(exist_ok=True)
    for path in model.iterdir():
        link = folder / path.name
        if path.name != "guard" and not link.exists():
            link.symlink_to(path.resolve())
    return folder
