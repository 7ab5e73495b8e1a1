import numpy as np
import pytest
import torch

from tests.evaluate.tiny import clock, corpus, learnt, llama, people, tokenizer
from tilth.backbones.folder import save
from tilth.batches.text.encoding import end_token
from tilth.context import Context, exhibits
from tilth.evaluate import metrics
from tilth.evaluate.extraction import Extraction


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    tokens = tokenizer()
    sets = {
        "forget": people("Mara"),
        "holdout": people("Odo"),
        "texts": [{"id": "0", "text": "the cat is big and the dog is red"}],
    }
    models = {"knows": learnt(tokens, people("Mara")), "fresh": llama(len(tokens)), "clock": clock(len(tokens))}
    return Context(
        folder=tmp_path / "stage",
        corpora={name: corpus(tmp_path / f"{name}.lance", rows) for name, rows in sets.items()},
        inputs={name: save(model, tokens, tmp_path / name) for name, model in models.items()},
        shared=tmp_path / "shared",
    )


def test_overlap_counts_grams_of_what_was_made():
    assert metrics.ngram_overlap([1, 2, 3, 4], [1, 2, 3, 4], 2) == 1.0
    assert metrics.ngram_overlap([1, 2, 9, 1, 2], [0, 1, 2], 2) == pytest.approx(2 / 4)  # each time it occurs
    assert metrics.ngram_overlap([2, 1], [1, 2], 2) == 0.0  # order counts
    assert metrics.ngram_overlap([1], [1, 2], 2) == 0.0  # too short to have one


def test_what_is_known_by_heart_is_extracted_and_what_is_not_is_not(bed):
    bench = Extraction(forget="forget", holdout="holdout", ngram=2, positions=99)
    found = bench(bed.model("knows"), bed).metrics
    assert (
        found["forget_extraction_likelihood"] == found["forget_exact_memorisation"] == found["forget_extraction_strength"] == 1.0
    )
    assert found["holdout_extraction_likelihood"] < 0.5 and found["below_unseen"] == 0.0
    swapped = Extraction(forget="holdout", holdout="forget", ngram=2)(bed.model("knows"), bed).metrics
    assert swapped["below_unseen"] == 1.0
    assert bench(bed.model("fresh"), bed).metrics["forget_extraction_likelihood"] < 0.2


def test_extraction_likelihood_is_the_mean_over_all_positions(bed):
    """By the formula, one transformers generation per t, on a text whose continuations differ."""
    tokens, m = tokenizer(), 2
    model = llama(len(tokens))
    ids = tokens("the cat is big and the dog is red").input_ids
    # A model that repeats its own habit: compare on a text made from it, so that some grams occur.
    ids = model.generate(torch.tensor([[end_token(tokens), *ids[:2]]]), max_new_tokens=8, do_sample=False)[0, 1:].tolist()
    text = tokens.decode(ids)
    assert tokens(text).input_ids == ids
    expected = []
    for t in range(1, len(ids) - m + 1):
        prefix, rest = [end_token(tokens), *ids[: t - 1]], ids[t - 1 :]
        made = model.generate(torch.tensor([prefix]), max_new_tokens=len(rest), do_sample=False)[0, len(prefix) :].tolist()
        grams = {tuple(rest[i : i + m]) for i in range(len(rest) - m + 1)}
        mine = [tuple(made[i : i + m]) for i in range(len(made) - m + 1)]
        expected.append(sum(gram in grams for gram in mine) / len(mine))
    bed.corpora["made"] = corpus(bed.folder / "made.lance", [{"id": "0", "text": text}])
    save(model, tokens, bed.inputs["fresh"])
    found = Extraction(forget="made", ngram=m, positions=99)(bed.model("fresh"), bed).metrics
    assert 0 < np.mean(expected) < 1
    assert found["forget_extraction_likelihood"] == pytest.approx(np.mean(expected))


def test_texts_too_short_for_one_gram_are_left_out(bed):
    scores = Extraction(forget="forget", ngram=50)(bed.model("knows"), bed)
    assert "forget_extraction_likelihood" not in scores.metrics and set(scores.details["extraction_likelihood"]) == {None}


def test_texts_are_scored_whole(bed):
    scores = Extraction(forget="texts", ngram=2)(bed.model("fresh"), bed)
    assert len(scores.details["id"]) == 1 and 0 <= scores.metrics["forget_exact_memorisation"] <= 1
    [table] = exhibits(bed.folder)
    assert table["rows"][0][0] == "forget"
