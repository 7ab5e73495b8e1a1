"""What an audit says in sentences: what was asked, what was done, what follows.

Notable: every sentence is computed from figures or from the model's own history, none is typed; what the history does not say
is said to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tilth.corpus import Corpus
from tilth.evaluate.audit.measures import BARE, BEFORE, GOLD, Measure, Result
from tilth.unlearn.checks import content_columns

UNCERTAINTY = (
    "Intervals hold 95 % and are percentile bootstrap intervals over examples (1,000 resamples): how far a figure would vary with other "
    "examples of the same kind. They say nothing about other training runs or other attacks. No correction was made for looking at "
    "several figures at once: of twenty comparisons between equal models about one is expected to differ."
)
_NAMES = {
    "forget": "what was to go", "retain": "what was to stay", "holdout": "like the forget set, trained on by no model",
    "real_authors": "general knowledge: real authors", "world_facts": "general knowledge: world facts",
    "forget_questions": "questions about the forget set", "retain_questions": "questions about the retain set",
    "shots": "examples put before questions",
}  # fmt: skip
_MODELS = {
    GOLD: ("the gold model", "never saw the forget set: what the audited model should be like"),
    BEFORE: ("the model before", "the model from which something was taken out"),
    "reference": ("the reference model", "for membership inference"),
}


def asked(data: Mapping[str, str], corpora: Mapping[str, Corpus], models: Mapping[str, str], limit: int | None) -> dict[str, Any]:
    """The sets with a few of their rows, the models compared with, and what was not given."""
    sets = []
    for name, corpus in corpora.items():
        columns = content_columns(corpus)
        rows = corpus.table(columns).slice(0, 3).to_pylist()
        sets.append(
            {
                "name": name, "role": _NAMES.get(name, "data of one section"), "rows": corpus.count(), "used": min(corpus.count(), limit) if limit and name in _NAMES else corpus.count(), "where": corpus.where,
                "fingerprint": corpus.fingerprint, "examples": [" ".join(str(row[column]) for column in columns) for row in rows],
            }
        )  # fmt: skip
    absent = [f"No {name.replace('_', ' ')} set was given." for name in ("retain", "holdout") if name not in data]
    absent += [
        f"{title.capitalize()} was not given."
        for name, (title, _) in _MODELS.items()
        if name not in models and name != "reference"
    ]
    compared = [
        {"name": name, "role": _MODELS.get(name, ("", "a model of one section"))[1], "place": place}
        for name, place in models.items()
    ]
    return {"sets": sets, "models": compared, "absent": absent}


def done(history: Any, corpora: Mapping[str, Corpus]) -> dict[str, Any]:
    """The model's own account of how it was made, and whether it speaks of the forget set that is audited."""
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    named = {corpus.fingerprint: name for name, corpus in corpora.items()}

    def known(value: Any) -> str:
        return f"the {named[value]} set of this audit" if value in named else f"data with the fingerprint {value}"

    steps, forgot = [], []
    for entry in entries:
        if "forgot" in entry:
            forgot.append(entry["forgot"])
            method = entry.get("method") or {}
            name = next(iter(method), "a method that is not named") if isinstance(method, dict) else str(method)
            settings = method.get(name) if isinstance(method, dict) else None
            steps.append(
                {"sentence": f"The method {name} was used to take out {known(entry['forgot'])}.", "settings": _settings(settings)}
            )
        elif "data" in entry:
            stage = entry.get("stage") or {}
            budget = (
                {key: value for key, value in (stage.get("budget") or {}).items() if value} if isinstance(stage, dict) else {}
            )
            steps.append({"sentence": f"The model was trained on {known(entry['data'])}.", "settings": _settings(budget)})
        else:
            steps.append({"sentence": "A further step, as recorded:", "settings": _settings(entry)})
    if not steps:
        matches = "The model's folder holds no history (tilth.json), so what was done to it is not known from the model itself."
    elif not forgot:
        matches = "The model's history names no unlearning step."
    elif corpora["forget"].fingerprint in forgot:
        matches = "The forget set audited here is the one that the history says was taken out (same fingerprint)."
    else:
        matches = (
            "The history's fingerprint of what was taken out is not that of the forget set audited here: another set, another order of "
            "rows, or the same rows read in another way."
        )
    return {"steps": steps, "matches": matches}


def never_known(measure: Measure, results: Mapping[str, Result]) -> str:
    """A sentence if the model before knew the forget set no better than the gold model; nothing if it did or nobody can tell."""
    gap = measure.between(results.get(BEFORE), results.get(GOLD))
    if gap is None or gap.low is None or gap.low > 0:
        return ""
    return (
        "The model before unlearning does not find the forget set likelier than a model that never saw it: it may never have known it, "
        "and then this audit proves nothing about unlearning."
    )


def conclusion(about: Mapping[str, Any]) -> dict[str, Any]:
    """'headline'; 'in_short': the sentences a reader should see first; 'counts' of judgements; 'weights_unlearned': yes, no or unknown."""
    rows = [(section, row) for section in about["sections"] for row in section["measures"]]
    of = {
        verdict: [(section["title"], row["title"]) for section, row in rows if row["verdict"] == verdict]
        for verdict in ("remains", "like gold", "below gold", "unlike gold", "fell", "did not fall", "lost", "kept")
    }
    judged = sum(len(of[verdict]) for verdict in ("remains", "like gold", "below gold", "unlike gold"))
    lines = list(about["notices"])
    if judged:
        lines.append(
            f"Of {judged} figures about what was to go that could be compared with a model that never saw it, {len(of['remains'])} show that more "
            f"is known than by that model, {len(of['like gold'])} show no difference, {len(of['below gold'])} show less and "
            f"{len(of['unlike gold'])} differ in another way."
        )
        if of["remains"]:
            lines.append("More is known, by " + _grouped(of["remains"]) + ".")
    elif any(item["name"] == GOLD for item in about["asked"]["models"]):
        lines.append("No figure could be compared with the gold model.")
    else:
        lines.append(
            "No gold model was given, so what remains cannot be compared with a model that never saw the forget set. "
            + (
                f"Of {len(of['fell']) + len(of['did not fall'])} figures about what was to go, {len(of['fell'])} are lower than before unlearning."
                if of["fell"] or of["did not fall"]
                else "Nor was the model before given."
            )
        )
    if of["lost"] or of["kept"]:
        lines.append(
            f"Of {len(of['lost']) + len(of['kept'])} figures about what was to stay, {len(of['lost'])} are lower than before unlearning"
            + (": by " + _grouped(of["lost"]) if of["lost"] else "")
            + "."
        )
    guard = about["model"]["guard"]
    if guard:
        bare = [row["bare"]["verdict"] for _, row in rows if row["bare"]] + [
            row["verdict"] for _, row in rows if BARE in row["values"] and row["bare"] is None
        ]
        lines.append(
            f"Weights unlearned: no. The model answers through a guard ({guard['method']}) that changes no weight; whoever holds the weights can "
            "drop it. Figures are given through the guard and without it"
            + (
                f"; without it {bare.count('remains')} of them show that more is known than by the gold model."
                if GOLD in _given(about)
                else "."
            )
        )
    absent = [section["title"] for section in about["sections"] if section["status"] == "absent"]
    if absent:
        lines.append(f"Not tested: {'; '.join(absent)}. The reasons are given below.")
    headline = "Whether something remains could not be judged."
    if of["remains"] or of["unlike gold"]:
        headline = "Something remains." if of["remains"] else "The model differs from one that never saw the forget set."
    elif judged:
        headline = "No test that could be made found anything that remains."
    if guard:
        headline += " The weights were not unlearned."
    return {
        "headline": headline,
        "in_short": lines,
        "counts": {verdict: len(titles) for verdict, titles in of.items()},
        "weights_unlearned": "no" if guard else "see figures",
    }


def _given(about: Mapping[str, Any]) -> set[str]:
    return {item["name"] for item in about["asked"]["models"]}


def _settings(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def _grouped(titles: list[tuple[str, str]]) -> str:
    """'Section: figure, figure; section: figure'."""
    named: dict[str, list[str]] = {}
    for section, title in titles:
        named.setdefault(section, []).append(title)
    return "; ".join(f"‘{section}’: {', '.join(of)}" for section, of in named.items())
