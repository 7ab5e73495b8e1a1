import zlib

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import corpus, learnt, llama, people, tokenizer, uniform
from tilth.backbones.folder import save
from tilth.context import Context, exhibits
from tilth.evaluate.membership import Membership

SCORES = ("loss", "zlib", "min_k", "min_k_plus_plus")


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    tokens = tokenizer()
    sets = {"forget": people("Mara"), "holdout": people("Odo")}
    texts = {
        "seen": [{"id": "0", "text": "the cat is big"}, {"id": "1", "text": "a dog"}],
        "unseen": [{"id": "2", "text": "who finds Mara at the town"}],
    }
    models = {"target": learnt(tokens, people("Mara")), "gold": llama(len(tokens)), "even": uniform(len(tokens))}
    return Context(
        folder=tmp_path / "stage",
        corpora={name: corpus(tmp_path / f"{name}.lance", rows) for name, rows in {**sets, **texts}.items()},
        inputs={name: save(model, tokens, tmp_path / name) for name, model in models.items()},
        shared=tmp_path / "shared",
    )


def test_what_was_learnt_stands_out(bed):
    found = Membership(forget="forget", holdout="holdout", gold="gold")(bed.model("target"), bed).metrics
    assert found["loss_auc"] == found["min_k_auc"] == 1.0
    assert found["privleak"] < 0  # under-unlearned
    swapped = Membership(forget="holdout", holdout="forget")(bed.model("target"), bed).metrics
    assert all(swapped[f"{name}_auc"] == pytest.approx(1 - found[f"{name}_auc"]) for name in SCORES)


def test_the_gold_model_leaks_nothing_by_definition(bed):
    found = Membership(forget="forget", holdout="holdout", gold="gold")(bed.model("gold"), bed).metrics
    assert found["privleak"] == 0.0
    assert found["gold_min_k_auc"] == found["min_k_auc"]


def test_the_same_set_twice_cannot_be_told_apart(bed):
    found = Membership(forget="forget", holdout="forget", reference="even")(bed.model("target"), bed).metrics
    assert [found[f"{name}_auc"] for name in (*SCORES, "reference")] == [0.5] * 5


def test_scores_of_texts_by_the_book(bed, tmp_path):
    tokens = tokenizer()
    scores = Membership(forget="seen", holdout="unseen", reference="even", fraction=0.5)(bed.model("gold"), bed)
    model = llama(len(tokens))
    for row, text in enumerate(["the cat is big", "a dog", "who finds Mara at the town"]):
        ids = tokens(text).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[tokens.eos_token_id, *ids]])).logits[0, :-1].double().log_softmax(-1)
        log_p = logits[torch.arange(len(ids)), torch.tensor(ids)].numpy()
        mean = (logits.exp() * logits).sum(-1).numpy()
        deviation = np.sqrt((logits.exp() * logits**2).sum(-1).numpy() - mean**2)
        lowest = len(ids) // 2
        assert scores.details["loss"][row] == pytest.approx(-log_p.mean(), abs=1e-4)
        assert scores.details["zlib"][row] == pytest.approx(-log_p.mean() / len(zlib.compress(text.encode())), abs=1e-5)
        assert scores.details["min_k"][row] == pytest.approx(-np.sort(log_p)[:lowest].mean(), abs=1e-4)
        assert scores.details["min_k_plus_plus"][row] == pytest.approx(
            -np.sort((log_p - mean) / deviation)[:lowest].mean(), abs=1e-3
        )
        assert scores.details["reference"][row] == pytest.approx(-log_p.mean() - np.log(len(tokens)), abs=1e-4)
    assert scores.details["set"] == ["forget", "forget", "holdout"]


def test_the_report_says_which_way_round(bed):
    Membership(forget="forget", holdout="holdout", gold="gold")(bed.model("target"), bed)
    [table] = exhibits(bed.folder)
    assert table["columns"] == ["score", "AUC", "AUC of the gold model"] and "stands out" in table["note"]
