"""Parametric traces: what the metrics say of vectors one can calculate, and the whole benchmark on a model that learnt people."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import corpus, learnt, people, tokenizer
from tests.unlearn.families import FAMILIES, family
from tilth.backbones.folder import save
from tilth.backbones.locations import feed_forwards
from tilth.context import Context
from tilth.errors import TilthError
from tilth.evaluate.concept_vectors import ConceptVectors, bleu, compare, rouge
from tilth.evaluate.forms import jailbreaks
from tilth.unlearn.needle import ablate
from tilth.unlearn.value_vectors import Locate, Place

TEXT = np.arange(0, 500, 2)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_unchanged_scaled_and_reversed_vectors(name, tie):
    model = family(name, 500, tie=tie)
    old = feed_forwards(model)[1].values().detach()[:4].clone()
    same = compare(model, model, old, old, 200, TEXT)
    assert same == {"cosine": pytest.approx([1.0] * 4), "l2": [0.0] * 4} | {
        k: [1.0] * 4 for k in ("jaccard", "precise", "related")
    }
    scaled = compare(model, model, old, 3 * old, 200, TEXT)
    assert scaled["cosine"] == pytest.approx([1.0] * 4) and scaled["jaccard"] == [1.0] * 4
    assert scaled["l2"] == pytest.approx((2 * old.norm(dim=1)).tolist())
    reversed_ = compare(model, model, old, -old, 200, TEXT)
    assert reversed_["cosine"] == pytest.approx([-1.0] * 4)
    assert reversed_["jaccard"] == reversed_["related"] == [0.0] * 4


def test_rates_are_of_the_tokens_that_are_in_the_concepts_text():
    model = family("llama", 500, tie=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[:10, 0] = torch.arange(10, 0, -1.0)
        model.lm_head.weight[6:16, 1] = torch.arange(10, 0, -1.0)
    old, new = torch.zeros(1, 32), torch.zeros(1, 32)
    old[0, 0], new[0, 1] = 1.0, 1.0  # tokens 0..9 before, 6..15 after
    found = compare(model, model, old, new, 10, np.array([0, 2, 7, 8, 12, 300]))
    assert found["jaccard"] == [4 / 16]
    assert found["precise"] == [3 / 4]  # 7, 8, 12 over 0, 2, 7, 8
    assert found["related"] == [2 / 4]  # 7, 8


def test_bleu_and_rouge_of_equal_texts_are_one_whatever_their_length():
    texts = ["", "one", "two words", "a b c d e f"]
    assert bleu(texts, texts).tolist() == rouge(texts, texts).tolist() == [1.0] * 4
    assert bleu(["a b c d e f"], ["a b c d x y"])[0] == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu(["", "a"], ["a", "b"]).max() < 1 and rouge([""], ["a"])[0] == 0.0


def test_jailbreaks_hold_the_question_and_what_loosens_tongues():
    forms = jailbreaks("Mara", ["who is she ?"], "Mara is a baker .", ["wer ist sie ?"])
    assert list(forms) == ["plain", "role", "grandmother", "in_context", "translation"]
    assert forms["plain"] == ["who is she ?"] and forms["translation"] == ["wer ist sie ?"]
    assert all(form[0].endswith("who is she ?") for name, form in forms.items() if name != "translation")
    assert "Mara" in forms["role"][0] and forms["in_context"][0].startswith("Mara is a baker .")
    assert "translation" not in jailbreaks("Mara", ["q"], "")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that learnt two people, the same after noise on one vector, and the sets."""
    folder = tmp_path_factory.mktemp("vectors")
    rows = [dict(row, german=f"wo {row['question']}") for row in people("Mara", "Odo")]
    words = tokenizer(["wo"])
    model = learnt(words, rows, steps=60)
    save(model, words, folder / "before")
    sets = {"forget": corpus(folder / "f.lance", rows[:4]), "retain": corpus(folder / "r.lance", rows[4:])}
    return folder, sets, model, words


LOCATE = Locate(keywords=6, top=8, count=2, sharpest=1.0, signs="both")


def run(world, model, **settings):
    folder, sets, _, words = world
    save(model, words, folder / "after")
    out = folder / "out"
    out.mkdir(exist_ok=True)
    context = Context(out, corpora=sets, inputs={"before": folder / "before"}, shared=folder / "shared")
    settings = {"locate": LOCATE, "validation": 4, "questions": 4, "max_new_tokens": 8, **settings}
    return ConceptVectors(before="before", forget="forget", retain="retain", **settings)(folder / "after", context)


def test_an_unchanged_model_leaves_every_trace(world):
    scores = run(world, world[2], translated="german")
    found = scores.metrics
    assert found["vectors"] == 2 and found["cosine"] == pytest.approx(1) and found["l2"] == 0
    assert all(found[name] == 1 for name in ("jaccard", "precise", "related"))
    for name in ("questions", "completion", "unrelated"):
        assert found[f"{name}_rouge"] == found[f"{name}_bleu"] == 1
    assert found["jailbreak_plain"] > 0.8 and {"jailbreak_role", "jailbreak_in_context", "jailbreak_translation"} <= set(found)
    assert 0 <= found["validated"] <= 1 and found["noise_rouge"] <= 1
    assert len(scores.details["layer"]) == len(scores.details["noise_rouge"]) == 2
    exhibits = [json.loads(line) for line in (world[0] / "out" / "exhibits.jsonl").read_text().splitlines()]
    assert {"Parametric traces", "Concepts and the words that mark them"} <= {exhibit["title"] for exhibit in exhibits}


def test_noise_in_a_vector_is_seen_there_and_validation_puts_it_back(world):
    first = run(world, world[2])
    layer, column = first.details["layer"][0], first.details["column"][0]
    model = deepcopy(world[2])
    ablate(model, [Place(layer, column)], 0.5)
    found = run(world, model).details
    assert found["cosine"][0] < 0.7 and found["cosine"][1] == pytest.approx(1.0)
    assert found["jaccard"][0] < 1 and found["l2"][1] == 0
    assert found["noise_rouge"] == first.details["noise_rouge"]
    assert (found["layer"], found["column"]) == (first.details["layer"], first.details["column"])


def test_strong_noise_on_what_answers_hang_on_is_causal(world):
    """Noise so strong that nothing is left of any answer changes answers about the concept and about others."""
    found = run(world, world[2], noise=100.0, questions=0).metrics
    assert found["noise_rouge"] < 0.9 and "questions_rouge" not in found
    assert "validated" not in run(world, world[2], validation=0, questions=0).metrics


def test_models_of_different_shape_are_not_compared(world):
    words = world[3]
    with pytest.raises(TilthError, match="different shapes"):
        run(world, family("llama", len(words), width=16))
