import json

import numpy as np
import pytest

from tests.evaluate.tiny import corpus, gpt2, learnt, llama, people, tokenizer
from tilth import index
from tilth.backbones.folder import load, save
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate.audit import words
from tilth.evaluate.audit.audit import Audit, without_guard
from tilth.evaluate.audit.measures import Measure, Result, judge
from tilth.evaluate.audit.sections import SECTIONS, column
from tilth.registry import configure


def other_forms(rows):
    return [{**row, "paraphrased_question": f"find {row['question']}"} for row in rows]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models and sets, made once: what was taught everyone, gold that never saw Mara, one that was told nothing, a guarded one."""
    folder = tmp_path_factory.mktemp("bed")
    tokens = tokenizer()
    mara, rest = other_forms(people("Mara", "Odette")), other_forms(people("Odo"))
    holdout = other_forms(people("Tristram"))
    sets = {
        "forget": mara,
        "retain": rest,
        "holdout": holdout,
        "texts": [{"id": "t", "text": "the cat is big and the dog is red"}],
    }
    corpora = {name: corpus(folder / f"{name}.lance", rows) for name, rows in sets.items()}
    before, gold = learnt(tokens, [*mara, *rest], steps=120), learnt(tokens, rest, steps=120)
    history = [
        {"data": "x", "stage": {"budget": {"epochs": 3}}},
        {"forgot": corpora["forget"].fingerprint, "method": {"npo": {"beta": 0.1}}},
    ]
    inputs = {
        "before": save(before, tokens, folder / "before"),
        "gold": save(gold, tokens, folder / "gold", {"history": history}),
        "fresh": save(llama(len(tokens)), tokens, folder / "fresh"),
        "gpt2": save(gpt2(len(tokens)), tokens, folder / "gpt2"),
    }
    return folder, corpora, inputs


@pytest.fixture
def bed(made, tmp_path):
    folder, corpora, inputs = made
    (tmp_path / "stage").mkdir()
    return Context(folder=tmp_path / "stage", corpora=corpora, inputs=dict(inputs), shared=folder / "shared")


def run(bed, model, **settings):
    scores = Audit(forget="forget", retain="retain", max_new_tokens=12, **settings)(bed.model(model), bed)
    return scores.metrics, json.loads((bed.folder / "audit.json").read_text())


def rows(about, name):
    [section] = [section for section in about["sections"] if section["name"] == name]
    return {row["name"]: row for row in section["measures"]}


FULL = {"gold": "gold", "before": "before", "holdout": "holdout"}


def test_a_model_that_forgot_nothing_is_found_out(bed):
    found, about = run(bed, "before", **FULL)
    assert about["headline"] == "Something remains."
    assert rows(about, "extraction")["forget_probability"]["verdict"] == "remains"
    assert rows(about, "tofu")["forget_rouge"]["verdict"] == "remains"
    assert rows(about, "paraphrase")["worst_rouge"]["verdict"] == "remains"
    assert found["membership_privleak"] < 0 and found["relearning_probability_area"] > 0.2
    assert found["quantisation_changed_8_bits"] == 0.0  # it is the model before
    assert all(
        section["status"] == "measured" for section in about["sections"] if section["name"] in {one.name for one in SECTIONS}
    )


def test_the_gold_model_passes_and_its_history_is_told(bed):
    found, about = run(bed, "gold", **FULL)
    assert about["headline"] == "No test that could be made found anything that remains."
    assert about["counts"]["remains"] == about["counts"]["below gold"] == 0 < about["counts"]["like gold"]
    assert found["tofu_log10_forget_quality"] == 0.0 and found["membership_privleak"] == 0.0
    assert [step["sentence"] for step in about["done"]["steps"]][
        1
    ] == "The method npo was used to take out the forget set of this audit."
    assert "same fingerprint" in about["done"]["matches"]
    assert about["asked"]["sets"][0]["rows"] == 8 and about["asked"]["absent"] == []


def test_figures_are_those_of_the_benchmarks_themselves(bed):
    from tilth.evaluate.tofu import Tofu

    found, about = run(bed, "gold", only=("tofu",), **FULL)
    own = Tofu(forget="forget", retain="retain", gold="gold", max_new_tokens=12)(bed.model("gold"), bed).metrics
    for name in ("forget_rouge", "forget_truth_ratio", "model_utility", "log10_forget_quality"):
        assert found[f"tofu_{name}"] == pytest.approx(own[name], rel=1e-6), name
    interval = rows(about, "tofu")["model_utility"]["values"]["model"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    assert about["answers"][0]["right"] and set(about["answers"][0]["said"]) == {"model", "before", "gold"}


def test_what_is_lacking_is_said_in_every_section_that_needs_it(bed):
    _, about = run(bed, "before", only=("extraction", "tofu", "membership", "quantisation"))
    said = {section["name"]: " ".join(section["missing"]) for section in about["sections"]}
    assert "need a holdout set" in said["membership"] and "no gold" not in said["membership"]
    assert "gold model, and none was given" in said["tofu"] and "real authors and world facts" in said["tofu"]
    assert "model before" in said["quantisation"] and "holdout" in said["extraction"]
    assert "without a gold model" in rows(about, "extraction")["forget_probability"]["sentence"]
    assert about["headline"] == "Whether something remains could not be judged."
    assert any(line.startswith("No gold model was given") for line in about["in_short"])
    assert {"No holdout set was given.", "The gold model was not given."} <= set(about["asked"]["absent"])


def test_texts_have_what_texts_allow(bed):
    bench = Audit(forget="texts")
    bench(bed.model("fresh"), bed)
    about = json.loads((bed.folder / "audit.json").read_text())
    status = {section["name"]: section["status"] for section in about["sections"]}
    assert status["extraction"] == status["muse"] == status["quantisation"] == "measured"
    assert status["tofu"] == status["paraphrase"] == status["relearning"] == "absent"
    assert "holds no history" in about["done"]["matches"]
    assert rows(about, "extraction")["forget_probability"]["values"]["model"]["low"] is None  # one example


def test_a_forget_set_nobody_knew_is_told(bed):
    _, about = run(bed, "gold", gold="gold", before="gold", only=("extraction",))
    assert "may never have known it" in about["in_short"][0]
    _, about = run(bed, "gold", gold="gold", before="before", only=("extraction",))
    assert about["notices"] == []


def test_overlapping_sets_and_unknown_sections_are_refused(bed):
    with pytest.raises(TilthError, match="forget set and the retain set overlap"):
        Audit(forget="forget", retain="forget")(bed.model("gold"), bed)
    with pytest.raises(TilthError, match="holdout set and the forget set overlap"):
        Audit(forget="forget", holdout="forget")(bed.model("gold"), bed)
    with pytest.raises(TilthError, match="no section 'tofo'"):
        Audit(forget="forget", only=("tofo",))(bed.model("gold"), bed)


def test_a_limit_spreads_over_the_whole_set(bed):
    _, about = run(bed, "before", only=("extraction",), limit=3, gold="gold")
    assert [(one["rows"], one["used"]) for one in about["asked"]["sets"]] == [(8, 3), (4, 3)]
    assert rows(about, "extraction")["forget_probability"]["values"]["model"]["count"] == 3
    sampled = Audit(forget="forget", limit=3).sampled(bed).corpus("forget")
    assert sampled.kind == bed.corpus("forget").kind
    ids = bed.corpus("forget").table(["id"])["id"].to_pylist()
    assert sampled.table(["id"])["id"].to_pylist() == [ids[0], ids[4], ids[7]]
    assert "same fingerprint" in run(bed, "gold", only=("extraction",), limit=3)[1]["done"]["matches"]


def test_benchmarks_with_data_of_their_own_run_when_it_is_given(bed):
    """RESTOR needs facts: without them the section says so, and other sections' data are not mistaken for them."""
    _, about = run(bed, "before", only=("restor",), **FULL)
    [section] = about["sections"]
    assert section["status"] == "absent" and "given as facts" in section["missing"][0]


def test_a_section_that_cannot_be_measured_does_not_end_the_audit(bed):
    """Another architecture before: its weights cannot be compared bucket by bucket."""
    _, about = run(bed, "gold", before="gpt2", only=("extraction", "quantisation"))
    assert [section["status"] for section in about["sections"]] == ["measured", "absent"]
    assert "not built alike" in about["sections"][1]["missing"][0]


def test_a_guarded_model_is_looked_at_without_its_guard_too(bed, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_loaded", dict(index._loaded))  # the guard below is this test's alone
    text_model = load(bed.model("before"))
    guard = _refusing()
    bed.inputs["guarded"] = save(text_model.model, text_model.tokenizer, tmp_path / "guarded", guard=guard)
    found, about = run(bed, "guarded", only=("tofu", "quantisation"), gold="gold")
    assert found["tofu_forget_rouge"] < 0.3 and found["tofu_forget_rouge_without_guard"] > 0.8
    assert any(line.startswith("Weights unlearned: no.") for line in about["in_short"]) and about["weights_unlearned"] == "no"
    row = rows(about, "tofu")["forget_rouge"]
    assert row["bare"]["verdict"] == "remains" and set(row["values"]) == {"model", "without guard", "gold"}
    assert set(rows(about, "quantisation")["probability"]["values"]) == {"without guard", "gold"}
    assert not (bed.folder / "without-guard").exists()
    assert load(without_guard(bed.model("guarded"), tmp_path / "bare")).guard is None


def _refusing():
    """A registered guard that refuses every prompt, found again when the model is loaded."""
    import torch

    from tilth.contracts import Guard

    @index.method("unlearn", "refuse_everything")
    class RefuseEverything(Guard):
        refusal = "no"

        def __init__(self) -> None:
            pass

        def fit(self, task):
            return {}

        def state(self):
            return {"nothing": torch.zeros(1)}, {}

        def restore(self, tensors, facts, text_model):
            pass

        def flags(self, text_model, prompts):
            return np.ones(len(prompts), dtype=bool)

    guard = RefuseEverything()
    guard.configured = configure("unlearn", "refuse_everything")
    return guard


def test_what_was_measured_is_found_again(bed, monkeypatch):
    first, _ = run(bed, "gold", only=("muse",), **FULL)
    from tilth.evaluate.muse import Muse

    monkeypatch.setattr(Muse, "__call__", lambda *_: pytest.fail("measured again"))
    again, _ = run(bed, "gold", only=("muse",), **FULL)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert [entry["title"] for entry in exhibits(bed.folder)][:2] == ["In short", "Audit"]


def results(**values):
    return {who: Result({}, {"x": list(part)}) for who, part in values.items()}


def test_judgement_needs_the_whole_interval():
    noise = np.random.default_rng(0).normal(0, 0.1, 50)
    measure = Measure("x", "x", "", column("x"))
    gold = np.full(50, 0.5)
    assert judge(measure, results(model=gold + 0.1 + noise, gold=gold), "model").verdict == "remains"
    assert judge(measure, results(model=gold + 0.001 + noise, gold=gold), "model").verdict == "like gold"
    assert judge(measure, results(model=gold - 0.1 + noise, gold=gold), "model").verdict == "below gold"
    less = Measure("x", "x", "", column("x"), knows=-1)
    assert judge(less, results(model=gold - 0.1 + noise, gold=gold), "model").verdict == "remains"
    match = Measure("x", "x", "", column("x"), knows=0)
    assert judge(match, results(model=gold - 0.1 + noise, gold=gold), "model").verdict == "unlike gold"
    kept = Measure("x", "x", "", column("x"), about="retain")
    assert judge(kept, results(model=gold - 0.1 + noise, before=gold), "model").verdict == "lost"
    assert judge(kept, results(model=gold + 0.1 + noise, before=gold), "model").verdict == "kept"
    assert judge(measure, results(model=gold - 0.1 + noise, before=gold), "model").verdict == "fell"
    assert judge(measure, results(model=gold), "model").verdict == "open"


def test_the_history_of_another_set_is_said(made):
    _, corpora, _ = made
    told = words.done([{"forgot": "other", "method": {"rmu": {}}}], corpora)
    assert "is not that of the forget set audited here" in told["matches"]
    assert words.done([{"data": "x"}], corpora)["matches"] == "The model's history names no unlearning step."
