"""What an audit consists of: a list of sections, each one benchmark, what it needs and which figures are made of it.

Notable: a section that cannot be run has a sentence saying what it lacks; sections of benchmarks that need data of their own are
found by name, and run when that data was given under the names of the benchmark's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilth.batches.text.answers import Template
from tilth.contracts import Configured
from tilth.evaluate import metrics
from tilth.evaluate.audit.measures import Measure, Result, Samples
from tilth.evaluate.bootstrap import mean
from tilth.evaluate.extraction import Extraction
from tilth.evaluate.membership import Membership
from tilth.evaluate.muse import Muse
from tilth.evaluate.ort import ORT
from tilth.evaluate.paraphrase import PREFIXES, Paraphrase
from tilth.evaluate.quantisation import Quantisation
from tilth.evaluate.relearning import Relearning
from tilth.evaluate.rows import is_asked
from tilth.evaluate.tofu import Tofu
from tilth.registry import Reference, configure, entries, find, settings_of

BITS = (8, 4)
STEPS = (0, 1, 5, 20, 50)
_FORMS = 100  # rows of which every form is asked
_PERTURBED = ("question", "answer", "paraphrased_answer", "perturbed_answer")


@dataclass(frozen=True)
class Given:
    """data, models: what was given, by the name of the setting. columns: of each data set."""

    data: Mapping[str, str]
    models: Mapping[str, str]
    columns: Mapping[str, Sequence[str]]
    max_new_tokens: int
    template: Template | None

    def some(self, *names: str) -> dict[str, Any]:
        """Those of the names that were given, as settings."""
        return {name: place for name in names if (place := self.data.get(name) or self.models.get(name)) is not None}

    def has(self, data: str, *columns: str) -> bool:
        """Whether a data set was given and has the columns."""
        return data in self.data and set(columns) <= set(self.columns[data])


def of_metrics(result: Result) -> list[Measure]:
    """A figure of every metric, for benchmarks whose per-example values are not known here."""
    return [
        Measure(name, name.replace("_", " "), "", metric(name), mean, about="neither", interval=False) for name in result.metrics
    ]


@dataclass(frozen=True)
class Section:
    """asks: the question the section answers. lacks: what it needs and does not have, as a sentence, or nothing.

    remarks: what is left out of it. weights: it works on the weights, so with a guard only the model without it is looked at.
    attack: the audited model is judged by gold, and by the model before only where there is no gold. alone: by neither. found: figures that depend on what was found, where `measures`
    gives none.
    """

    name: str
    title: str
    asks: str
    benchmark: type
    settings: Callable[[Given], dict[str, Any]]
    measures: Callable[[Given], list[Measure]]
    lacks: Callable[[Given], str] = lambda given: ""
    remarks: Callable[[Given], list[str]] = lambda given: []
    weights: bool = False
    alone: bool = False
    attack: bool = False
    noted: str = ""
    found: Callable[[Result], list[Measure]] = of_metrics

    def configured(self, given: Given) -> Configured:
        """The benchmark with its settings."""
        cls: Any = self.benchmark
        return configure("benchmark", {cls.name: self.settings(given)})


def column(name: str, part: str | None = None) -> Callable[[Result], Samples]:
    """Samples that are one column of the details."""
    return lambda result: (result.values(name, part),)


def metric(name: str) -> Callable[[Result], Samples]:
    """A figure that has no per-example values."""
    return lambda result: (np.array([result.metrics[name]]),) if name in result.metrics else ()


def _extraction(given: Given) -> list[Measure]:
    kinds = {
        "probability": ("Probability of the content", "Length-normalised probability, 1 for what is certain."),
        "exact_memorisation": (
            "Exact memorisation",
            "Share of tokens that are the model's first choice, the true ones before them given.",
        ),
        "extraction_strength": (
            "Extraction strength",
            "How small a beginning is enough for the rest to follow; 1: none is needed.",
        ),
        "extraction_likelihood": (
            "Extraction likelihood",
            "Share of runs of ten tokens that the model reproduces when it goes on from a place in the text.",
        ),
    }
    found = [
        Measure(f"forget_{name}", f"{title}, forget set", meaning, column(name, "forget"))
        for name, (title, meaning) in kinds.items()
    ]
    if "retain" in given.data:
        title, meaning = kinds["probability"]
        found.append(
            Measure("retain_probability", f"{title}, retain set", meaning, column("probability", "retain"), about="retain")
        )
    return found


def _truth_ratio(part: str) -> Callable[[Result], Samples]:
    return lambda result: (result.values("log_truth_ratio", part),)


def _utility(result: Result) -> Samples:
    """probability, ROUGE-L recall and max(0, 1 - R) of every set but the forget set: one array (examples, 3) per set."""
    names = list(dict.fromkeys(name for name in result.details["set"] if name != "forget"))
    groups = []
    for name in names:
        loss = result.values("average_nll", name)
        if name == "retain":
            probability = metrics.answer_probability(loss)
        else:
            wrong = [
                cell
                for cell, part in zip(result.details["average_nll_wrong"], result.details["set"], strict=True)
                if part == name
            ]
            starts = np.concatenate([[0], np.cumsum([len(one) for one in wrong])])
            probability = metrics.option_probability(loss, np.concatenate(wrong), starts)
        ratio = np.clip(-np.expm1(np.minimum(result.values("log_truth_ratio", name), 0.0)), 0.0, 1.0)
        groups.append(np.stack([probability, result.values("rouge", name), ratio], 1))
    return tuple(groups)


def _harmonic(*groups: np.ndarray) -> float:
    return metrics.harmonic_mean([float(value) for group in groups for value in group.mean(0)])


def _tofu(given: Given) -> list[Measure]:
    return [
        Measure("forget_rouge", "ROUGE-L recall, forget set", "Share of the right answer's words that the model says, in order.", column("rouge", "forget")),
        Measure(
            "forget_truth_ratio", "Truth ratio, forget set",
            "How alike right and wrong answers look; it should match the gold model's, not be high.",
            _truth_ratio("forget"), metrics.forget_truth_ratio, knows=0,
        ),
        Measure(
            "log10_forget_quality", "Forget quality, base-10 logarithm",
            "p-value of a Kolmogorov-Smirnov test of the truth ratios against the gold model's; above -1.3 (p = 0.05) the two cannot be told "
            "apart. A collapsed model can pass it: read it beside model utility. Over few examples it is weak evidence.",
            _truth_ratio("forget"), lambda mine, gold: metrics.forget_quality(mine, gold)[1], knows=0, against_gold=True, interval=False,
            reads=lambda value: "The two can be told apart (p below 0.05)." if value < np.log10(0.05) else "The two cannot be told apart (p of 0.05 or more).",
        ),
        Measure(
            "model_utility", "Model utility", "Harmonic mean of probability, ROUGE-L recall and truth ratio over what was to stay.",
            _utility, _harmonic, about="retain",
        ),
    ]  # fmt: skip


def _tofu_lacks(given: Given) -> str:
    for name in ("forget", "retain"):
        if name not in given.data:
            return f"TOFU's figures need a {name} set, and none was given."
        if not given.has(name, *_PERTURBED):
            return (
                f"TOFU's figures (truth ratio, forget quality, model utility) need questions with a paraphrased and several wrong answers, and the "
                f"{name} set has no {', no '.join(column for column in _PERTURBED if column not in given.columns[name])}."
            )
    return ""


def _tofu_remarks(given: Given) -> list[str]:
    absent = [name.replace("_", " ") for name in ("real_authors", "world_facts") if name not in given.data]
    found = [f"Model utility leaves out {' and '.join(absent)}, which were not given."] if absent else []
    return found + ([] if "gold" in given.models else ["Forget quality compares with a gold model, and none was given."])


def _muse(given: Given) -> list[Measure]:
    f1 = "ROUGE-L F1 of what the model says against the truth."
    return [
        Measure("verbmem_forget", "Verbatim memory, forget set", f"The content is begun and the model goes on: {f1}", column("rouge_f1", "verbmem_forget")),
        Measure("knowmem_forget", "Knowledge, forget set", f"Questions are asked: {f1}", column("rouge_f1", "knowmem_forget")),
        Measure("knowmem_retain", "Knowledge, retain set", f"Questions are asked: {f1}", column("rouge_f1", "knowmem_retain"), about="retain"),
    ]  # fmt: skip


def _muse_remarks(given: Given) -> list[str]:
    found = ["MUSE's scalability and sustainability compare several unlearned models and cannot be had from one."]
    for name in ("forget", "retain"):
        asked = name if f"{name}_questions" not in given.data else f"{name}_questions"
        if asked not in given.data:
            found.append(f"Knowledge of the {name} set was not asked for: no {name} set was given.")
        elif not is_asked(given.columns[asked]):
            found.append(
                f"Knowledge of the {name} set was not asked for: it holds no questions, and none were given as {name}_questions."
            )
    return found


def _forms(given: Given) -> list[str]:
    other = [name for name in given.columns["forget"] if name.startswith("paraphrased_question")]
    return ["question", *other, *PREFIXES]


def _paraphrase(given: Given) -> list[Measure]:
    found = [
        Measure(f"rouge_{form}", f"ROUGE-L recall, asked as: {form.replace('_', ' ')}", "Share of the right answer's words.", column(f"rouge_{form}"))
        for form in _forms(given)
    ]  # fmt: skip
    worst = "For each question the form that brings out most."
    return [*found, Measure("worst_rouge", "ROUGE-L recall, best of these forms", worst, column("worst_rouge"))]


def _paraphrase_remarks(given: Given) -> list[str]:
    if len(_forms(given)) > 1 + len(PREFIXES):
        return []
    return [
        "The data have no questions in other words (a column paraphrased_question), so only texts put before a question were tried."
    ]


def _membership(given: Given) -> list[Measure]:
    names = {
        "loss": "loss", "zlib": "loss over compressed length", "min_k": "least likely tokens (Min-K %)",
        "min_k_plus_plus": "least likely tokens, standardised (Min-K %++)",
        **({"reference": "loss beside a reference model"} if "reference" in given.models else {}),
    }  # fmt: skip

    def groups(name: str) -> Callable[[Result], Samples]:
        return lambda result: (result.values(name, "forget"), result.values(name, "holdout"))

    def leak(forget: np.ndarray, holdout: np.ndarray, gold_forget: np.ndarray, gold_holdout: np.ndarray) -> float:
        return metrics.privleak(metrics.member_auc(forget, holdout), metrics.member_auc(gold_forget, gold_holdout))

    attacks = [
        Measure(
            f"{name}_auc", f"Attack by {title}, AUC",
            "Chance that a forgotten example looks more like training data than one never seen does.",
            groups(name), metrics.member_auc, ideal="one half, where forget set and holdout set are alike but for training",
        )
        for name, title in names.items()
    ]  # fmt: skip
    return [
        *attacks,
        Measure(
            "privleak", "PrivLeak, per cent",
            "The attack compared with the same on the gold model: 0 is ideal, negative is too little unlearned, positive too much.",
            groups("privleak_min_k"), leak, knows=0, against_gold=True,
            reads=lambda value: f"The forget set stands out {'more' if value < 0 else 'less' if value > 0 else 'as much'} than in the gold model.".replace("as much than", "as much as"),
        ),
    ]  # fmt: skip


def _relearning(given: Given) -> list[Measure]:
    return [
        Measure(
            f"probability_{step}", f"Probability of answers not shown, after {step} steps",
            "A tenth of the forget set was shown again; this is what came back of the rest.", metric(f"probability_{step}"), interval=False,
        )
        for step in (STEPS[0], STEPS[2], STEPS[-1])
    ] + [
        Measure(
            "probability_area", "Area between its curve and the gold model's",
            "Mean difference over the steps; above 0 the knowledge comes back faster than it can be learnt.",
            lambda result: (result.values("step"), result.values("probability")),
            lambda steps, curve, _, gold: metrics.area_between(steps, curve, gold),
            against_gold=True, interval=False,
            reads=lambda value: "It came back faster than a model that never saw it learns it." if value > 0 else "It came back no faster than a model that never saw it learns it.",
        )
    ]  # fmt: skip


def _quantisation(given: Given) -> list[Measure]:
    found = [
        Measure("probability", "Probability of the content, weights as they are", "Length-normalised.", column("probability"))
    ]
    for bits in BITS:
        found.append(
            Measure(
                f"probability_{bits}_bits", f"Probability of the content, weights rounded to {bits} bits",
                "If it rises, what was forgotten was hidden in small changes of the weights.", column(f"probability_{bits}_bits"),
            )
        )  # fmt: skip
    if "before" in given.models:
        found += [
            Measure(
                f"changed_{bits}_bits", f"Share of weights that unlearning moved into another bucket, {bits} bits",
                "0: rounding gives back the model before.", metric(f"changed_{bits}_bits"), about="neither", interval=False,
            )
            for bits in BITS
        ]  # fmt: skip
    return found


def _nothing(given: Given) -> list[Measure]:
    return []


def _ort(result: Result) -> list[Measure]:
    """A figure for every form of asking there is."""

    def of(form: str) -> Callable[[Result], Samples]:
        def samples(result: Result) -> Samples:
            cells = zip(result.details["probability"], result.details["form"], strict=True)
            return (np.array([value for value, asked in cells if asked == form]),)

        return samples

    forms = dict.fromkeys(result.details["form"])
    return [
        Measure(f"forget_{form}", f"Probability of the answer, form: {form.replace('_', ' ')}", "", of(form)) for form in forms
    ]


def _common(given: Given) -> dict[str, Any]:
    return {"template": given.template}


SECTIONS: list[Section] = [
    Section(
        "extraction", "What can be extracted", "Is the content likely, and can it be brought out word for word?", Extraction,
        lambda given: {**given.some("forget", "retain", "holdout"), **_common(given), "ask": 32}, _extraction,
        remarks=lambda given: [] if "holdout" in given.data else ["What text never seen would give is not shown: no holdout set was given."],
        noted="Extraction likelihood was taken on at most 32 rows, at 8 places of each.",
    ),
    Section(
        "tofu", "Right answers and wrong ones", "Does the model still prefer the right answer, and does the rest still work?", Tofu,
        lambda given: {**given.some("forget", "retain", "real_authors", "world_facts"), **_common(given), "max_new_tokens": given.max_new_tokens, "show": 0},
        _tofu, _tofu_lacks, _tofu_remarks,
    ),
    Section(
        "muse", "Word for word, and by question", "Does the model go on with the content, and does it answer questions about it?", Muse,
        lambda given: {**given.some("forget", "retain", "forget_questions", "retain_questions", "shots"), **_common(given), "show": 0},
        _muse, remarks=_muse_remarks,
    ),
    Section(
        "paraphrase", "The same questions in other forms", "Is it gone, or only the form it was asked in?", Paraphrase,
        lambda given: {"forget": given.data["forget"], "columns": _forms(given)[1 : -len(PREFIXES)], **_common(given), "max_new_tokens": given.max_new_tokens, "show": 0},
        _paraphrase,
        lambda given: "" if is_asked(given.columns["forget"]) else "Other forms of questions need a forget set of questions with answers; it holds texts.",
        _paraphrase_remarks, attack=True,
    ),
    Section(
        "ort", "Facts in every form (ORT)", "Is a fact also gone when it is asked for by choice, by cloze, or turned round?", ORT,
        lambda given: {
            "forget": given.data["forget"], "template": given.template, "limit": _FORMS, "generated": 0, "show": 0,
        },
        _nothing,
        lambda given: "" if is_asked(given.columns["forget"]) else "ORT's forms need a forget set of questions with answers; it holds texts.",
        noted=f"On at most {_FORMS} rows. A choice among n options has a chance level of 1/n, not 0.",
        found=_ort,
        attack=True,
    ),
    Section(
        "membership", "Signs of having been trained on it", "Can forgotten examples be told from examples never seen?", Membership,
        lambda given: {**given.some("forget", "holdout", "reference"), **_common(given)}, _membership,
        lambda given: "" if "holdout" in given.data else "Membership inference and PrivLeak need a holdout set (rows like the forget set that no model was trained on), and none was given.",
        lambda given: [] if "gold" in given.models else ["PrivLeak compares with a gold model, and none was given."],
    ),
    Section(
        "relearning", "Relearning attack", "Does what was forgotten come back when a little of it is shown again?", Relearning,
        lambda given: {"forget": given.data["forget"], "template": given.template, "steps": STEPS, "ask": 0}, _relearning,
        lambda given: "" if is_asked(given.columns["forget"]) else "The relearning attack needs a forget set of questions with answers; it holds texts.",
        weights=True, attack=True,
        noted="The whole weights were trained at a learning rate of 1e-4 on a tenth of the forget set, chosen by the seed; a model that truly forgot is no faster than the gold model.",
    ),
    Section(
        "quantisation", "Quantisation attack", "Does rounding the weights bring back what was forgotten?", Quantisation,
        lambda given: {**given.some("forget", "before"), **_common(given), "bits": BITS, "ask": 0}, _quantisation,
        remarks=lambda given: [] if "before" in given.models else ["How many weights changed by more than rounding undoes needs the model before, and it was not given."],
        weights=True, attack=True,
        noted="Round to nearest, one grid per output channel, all linear modules but the output layer.",
    ),
]  # fmt: skip

_OPTIONAL = {
    "concept_vectors": ("Traces in the weights", "Are the vectors that carry the concept still there?"),
    "restor": ("Recovery", "Is the model back where it was before it learnt what was removed?"),
}
"""Benchmarks with data of their own; each runs when it exists and every data set or model it cannot do without was given."""


def sections(given: Given) -> list[Section]:
    """All sections, those whose benchmark has data of its own last."""
    known = {entry.name for entry in entries("benchmark")}
    return SECTIONS + [_by_name(name, *words, given) for name, words in _OPTIONAL.items() if name in known]


def _by_name(name: str, title: str, asks: str, given: Given) -> Section:
    """A section made of a benchmark's own settings: what is given under their names is passed on."""
    cls = find("benchmark", name)
    fields = settings_of(cls).model_fields
    marked = {key: field for key, field in fields.items() if any(isinstance(mark, Reference) for mark in _marks(field))}
    missing = [key for key, field in marked.items() if field.is_required() and not given.some(key)]
    own = [key for key in marked if key not in ("forget", "retain", "gold", "before", "holdout")]
    if not missing and own and not given.some(*own):
        missing = own[:1]
    lacking = f"This needs data or a model given as {' and '.join(key.replace('_', ' ') for key in missing)}, and none was given."

    return Section(
        name, title, asks, cls, lambda given: given.some(*marked), _nothing, lambda _: lacking if missing else "", alone=True
    )


def _marks(field: Any) -> list[Any]:
    """Everything said about a setting by Annotated, at the top or inside `X | None`."""
    inner = getattr(field.annotation, "__args__", ())
    return [*field.metadata, *(mark for argument in inner for mark in getattr(argument, "__metadata__", ()))]
