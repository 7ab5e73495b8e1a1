import math
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import ks_2samp

from tests.evaluate.tiny import corpus, gpt2, learnt, llama, people, tokenizer, uniform
from tilth.backbones.folder import save
from tilth.context import Context, exhibits
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.evaluate.tofu import Tofu
from tilth.registry import configure

FAR = [
    {"id": "f0", "question": "where is the dog", "answer": "the town", "perturbed_answer": ["the tree", "a book"]},
    {"id": "f1", "question": "what is a cat", "answer": "an animal", "perturbed_answer": ["a big book", "the tree"]},
]


def context(tmp_path, **corpora):
    """Rows by reference, written as tables."""
    (tmp_path / "stage").mkdir(exist_ok=True)
    made = {name: corpus(tmp_path / f"{name}.lance", rows) for name, rows in corpora.items()}
    return Context(folder=tmp_path / "stage", corpora=made, shared=tmp_path / "shared")


def saved(model, folder, template=None):
    return save(model, tokenizer(), folder, {"template": template} if template else {})


@pytest.fixture
def bed(tmp_path):
    forget, retain = people("Mara"), people("Odo")
    return context(tmp_path, forget=forget, retain=retain, far=FAR, facts=FAR)


def by_the_book(model, tokens, question, answer):
    """Nats per token of answer and end, one sequence, whole logits."""
    prompt = tokens(f"Question: {question}\nAnswer:", add_special_tokens=False).input_ids
    reply = [*tokens(f" {answer}", add_special_tokens=False).input_ids, tokens.eos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0].double().log_softmax(-1)
    return -np.mean([logits[len(prompt) + at - 1, token].item() for at, token in enumerate(reply)])


def test_a_uniform_model(bed, tmp_path):
    """Probability 1/V whatever the length, R = 1 exactly, an option's probability 1 / (1 + wrong ones)."""
    size = len(tokenizer())
    folder = saved(uniform(size), tmp_path / "model")
    scores = Tofu(forget="forget", retain="retain", real_authors="far", world_facts="facts", max_new_tokens=4)(folder, bed)
    found = scores.metrics
    assert found["forget_probability"] == pytest.approx(1 / size, rel=1e-5)
    assert found["retain_probability"] == pytest.approx(1 / size, rel=1e-5)
    assert found["real_authors_probability"] == pytest.approx(1 / 3, rel=1e-5)
    assert found["forget_truth_ratio"] == pytest.approx(1, abs=1e-5)
    assert [found[f"{name}_truth_ratio"] for name in ("retain", "real_authors", "world_facts")] == pytest.approx(
        [0] * 3, abs=1e-5
    )
    assert scores.details["log_truth_ratio"] == pytest.approx([0] * 12, abs=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_raw_values_equal_one_sequence_at_a_time(bed, tmp_path, make):
    tokens = tokenizer()
    model = make(len(tokens))
    scores = Tofu(forget="forget", retain="retain", real_authors="far", max_new_tokens=4)(saved(model, tmp_path / "model"), bed)
    rows = [(row, "paraphrased_answer") for row in people("Mara") + people("Odo")] + [(row, "answer") for row in FAR]
    for number, (row, base) in enumerate(rows):
        average = by_the_book(model, tokens, row["question"], row["answer"])
        wrong = [by_the_book(model, tokens, row["question"], answer) for answer in row["perturbed_answer"]]
        right = by_the_book(model, tokens, row["question"], row[base])
        assert scores.details["id"][number] == row["id"]
        assert scores.details["average_nll"][number] == pytest.approx(average, abs=1e-5)
        assert scores.details["average_nll_wrong"][number] == pytest.approx(wrong, abs=1e-5)
        assert scores.details["log_truth_ratio"][number] == pytest.approx(right - np.mean(wrong), abs=1e-5)
    expected = np.mean([math.exp(-by_the_book(model, tokens, row["question"], row["answer"])) for row in people("Mara")])
    assert scores.metrics["forget_probability"] == pytest.approx(expected, rel=1e-4)


def test_a_model_that_knows_one_half_by_heart(bed, tmp_path):
    tokens = tokenizer()
    gold, target = learnt(tokens, people("Odo")), learnt(tokens, people("Mara", "Odo"))
    folders = {"gold": saved(gold, tmp_path / "gold"), "target": saved(target, tmp_path / "target")}
    bed.inputs = folders
    audit = Tofu(forget="forget", retain="retain", gold="gold", max_new_tokens=12, before="target", show=2)
    target_scores, gold_scores = audit(folders["target"], bed).metrics, audit(folders["gold"], bed).metrics
    assert target_scores["forget_probability"] > 0.9 and gold_scores["forget_probability"] < 0.5
    assert target_scores["forget_rouge"] == target_scores["retain_rouge"] == gold_scores["retain_rouge"] == 1.0
    assert target_scores["forget_exact_memorisation"] == target_scores["forget_extraction_strength"] == 1.0
    assert gold_scores["forget_extraction_strength"] < 0.9
    assert gold_scores["forget_quality"] == 1.0 and gold_scores["log10_forget_quality"] == 0.0
    shown = [entry for entry in exhibits(bed.folder) if entry["kind"] == "examples"]
    assert shown[0]["columns"] == ["question", "right answer", "before", "now"] and len(shown[0]["rows"]) == 2
    assert shown[0]["rows"][0][1] == shown[0]["rows"][0][2]  # the target knew it


def test_forget_quality_is_the_test_between_raw_truth_ratios(bed, tmp_path):
    tokens = tokenizer()
    one, other = saved(llama(len(tokens), seed=1), tmp_path / "one"), saved(llama(len(tokens), seed=2), tmp_path / "other")
    audit = Tofu(forget="forget", retain="retain", gold=str(other), max_new_tokens=2)
    scores, gold = audit(one, bed), audit(other, bed)
    raw = [np.exp(found.details["log_truth_ratio"][:4]) for found in (scores, gold)]
    assert scores.metrics["forget_quality"] == pytest.approx(ks_2samp(*raw).pvalue)


def test_the_gold_model_is_scored_once_and_again_when_it_or_the_data_change(bed, tmp_path, monkeypatch):
    size = len(tokenizer())
    model, gold = saved(llama(size), tmp_path / "model"), saved(uniform(size), tmp_path / "gold")
    first = Tofu(forget="forget", retain="retain", gold=str(gold), max_new_tokens=2)(model, bed).metrics
    kept = list((tmp_path / "shared").glob("gold-tofu-*[0-9a-f]"))
    assert len(kept) == 1
    assert Tofu(forget="forget", retain="retain", gold=str(gold), max_new_tokens=2)(model, bed).metrics == first
    assert list((tmp_path / "shared").glob("gold-tofu-*[0-9a-f]")) == kept
    saved(llama(size, seed=3), gold)
    Tofu(forget="forget", retain="retain", gold=str(gold), max_new_tokens=2)(model, bed)
    Tofu(forget="retain", retain="forget", gold=str(gold), max_new_tokens=2)(model, bed)
    assert len(list((tmp_path / "shared").glob("gold-tofu-*[0-9a-f]"))) == 3


def test_what_is_left_out_is_said(bed, tmp_path):
    folder = saved(llama(len(tokenizer())), tmp_path / "model")
    found = Tofu(forget="forget", retain="retain", max_new_tokens=2)(folder, bed).metrics
    assert "forget_quality" not in found and "world_facts_rouge" not in found
    notes = {entry["title"]: entry["text"] for entry in exhibits(bed.folder) if entry["kind"] == "note"}
    assert "gold" in notes["No forget quality"]
    assert "3 numbers instead of nine: no real authors and no world facts" in notes["Utility over fewer sets"]


def test_utility_is_the_harmonic_mean_of_nine(bed, tmp_path):
    folder = saved(learnt(tokenizer(), people("Mara", "Odo")), tmp_path / "model")
    found = Tofu(forget="forget", retain="retain", real_authors="far", world_facts="facts", max_new_tokens=6)(folder, bed).metrics
    nine = [
        found[f"{name}_{what}"]
        for name in ("retain", "real_authors", "world_facts")
        for what in ("probability", "rouge", "truth_ratio")
    ]
    assert found["model_utility"] == pytest.approx(0 if min(nine) == 0 else 9 / sum(1 / value for value in nine))


def test_the_template_is_the_models_own(bed, tmp_path):
    model = llama(len(tokenizer()))
    own, default = (
        saved(model, tmp_path / "own", {"prompt": "{question} ?", "answer": " {answer}"}),
        saved(model, tmp_path / "default"),
    )

    def average(folder, **template):
        settings = {"forget": "forget", "retain": "retain", "max_new_tokens": 1, **template}
        return configure("benchmark", {"tofu": settings}).build()(folder, bed).details["average_nll"]

    asked = average(own)
    assert asked == average(default, template={"prompt": "{question} ?"})
    assert asked != pytest.approx(average(default))


def test_rows_without_what_the_metric_needs_are_named(bed, tmp_path):
    rows = people("Mara")
    rows[2]["perturbed_answer"] = []
    folder = saved(llama(len(tokenizer())), tmp_path / "model")
    broken = context(tmp_path / "stage", forget=rows, retain=people("Odo"), plain=[{"id": "0", "question": "q", "answer": "a"}])
    with pytest.raises(TilthError, match="row 'Mara-animal' of forget has no 'perturbed_answer'"):
        Tofu(forget="forget", retain="retain")(folder, broken)
    with pytest.raises(TilthError, match="no column 'paraphrased_answer'"):
        Tofu(forget="plain", retain="retain")(folder, broken)


def test_limit_takes_the_first_rows(bed, tmp_path):
    folder = saved(llama(len(tokenizer())), tmp_path / "model")
    scores = Tofu(forget="forget", retain="retain", limit=3, max_new_tokens=1)(folder, bed)
    assert scores.details["id"] == [row["id"] for row in people("Mara")[:3] + people("Odo")[:3]]


def test_on_real_rows(data: Path, tmp_path):
    """Rows of TOFU itself with their five and three wrong answers, every set."""
    table = pq.read_table(data / "tofu.parquet")
    splits = {
        "forget": "forget10_perturbed",
        "retain": "retain_perturbed",
        "authors": "real_authors_perturbed",
        "facts": "world_facts_perturbed",
    }
    (tmp_path / "stage").mkdir()
    corpora, texts = {}, []
    for name, split in splits.items():
        part = table.filter(pc.equal(table["split"], split)).slice(0, 4)
        part = part.append_column("id", pc.binary_join_element_wise(part["split"], pc.cast(part["index"], "string"), "-"))
        texts += [text for column in ("question", "answer") for text in part[column].to_pylist()]
        corpora[name] = Corpus.write(tmp_path / f"{name}.lance", part.to_batches(), part.schema)
    tokens = tokenizer(texts)
    folder = save(llama(len(tokens), context=256), tokens, tmp_path / "model")
    seen = Context(folder=tmp_path / "stage", corpora=corpora, shared=tmp_path / "shared")
    scores = Tofu(
        forget="forget", retain="retain", real_authors="authors", world_facts="facts", gold=str(folder), max_new_tokens=8
    )(folder, seen)
    assert [len(wrong) for wrong in scores.details["average_nll_wrong"]] == [5] * 8 + [3] * 8
    assert scores.metrics["forget_quality"] == 1.0
    assert all(math.isfinite(value) for value in scores.metrics.values())
