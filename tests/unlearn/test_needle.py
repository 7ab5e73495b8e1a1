"""Planted concepts are found, and erasing them moves nothing else."""

from copy import deepcopy

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.unlearn.families import FAMILIES, family
from tilth.backbones.folder import TextModel
from tilth.backbones.locations import feed_forwards, unembedding
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget
from tilth.unlearn.needle import Columns, ablate, without_decay
from tilth.unlearn.value_vectors import Locate, Place, concepts, find, keywords, top_tokens, vector

VOCABULARY = 120
WORDS = [7, 64, 65, 118]


def plant(model, words, layer=1, column=11, sign=1):
    """Make one value vector the mean of the words' unembedding rows."""
    with torch.no_grad():
        feed_forwards(model)[layer].values()[column] = sign * unembedding(model)[words].mean(0)
    return model


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_planted_concept_is_found_first_and_whole(name, tie):
    model = family(name, VOCABULARY, width=128, tie=tie)
    locate = Locate(top=len(WORDS), count=3, sharpest=1.0)
    assert find(model, WORDS, locate)[0].score < 1
    best, second, _ = find(plant(model, WORDS), WORDS, locate)
    assert (best.layer, best.column, best.score) == (1, 11, 1.0)
    assert second.score < 1


def test_a_concept_written_with_a_minus_sign_is_found_when_both_signs_are_read():
    model = plant(family("llama", VOCABULARY, width=128), WORDS, sign=-1)
    positive, both = (Locate(top=len(WORDS), count=1, sharpest=1.0, signs=signs) for signs in ("positive", "both"))
    assert find(model, WORDS, positive)[0][:2] != (1, 11)
    place = find(model, WORDS, both)[0]
    assert place == Place(1, 11, 1.0, -1)
    torch.testing.assert_close(vector(model, place), unembedding(model)[WORDS].mean(0))


def test_only_sharp_vectors_of_deep_enough_layers_are_looked_at():
    model = plant(family("gpt2", VOCABULARY, width=128), WORDS)
    assert find(model, WORDS, Locate(top=4, count=1, sharpest=1.0, from_layer=2))[0].layer == 2
    with torch.no_grad():
        feed_forwards(model)[1].values()[11] *= 1e-3  # still the same tokens, but hardly says them
    assert find(model, WORDS, Locate(top=4, count=1, sharpest=0.5))[0][:2] != (1, 11)
    assert find(model, WORDS, Locate(top=4, count=1, sharpest=1.0))[0][:2] == (1, 11)


def test_projection_is_the_unembedding_without_the_final_norm():
    model = family("llama", VOCABULARY, tie=False)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.randn(32))
    values = feed_forwards(model)[0].values().detach()
    tokens, logits = top_tokens(model, values, 5)
    expected = (values @ model.lm_head.weight.t()).topk(5)
    assert torch.equal(tokens, expected.indices)
    torch.testing.assert_close(logits, expected.values)


def test_keywords_are_what_a_text_says_and_others_do_not():

    tokenizer = use("tokenizer", "word").build().train(iter(["the cat sat mara wrote poems dog ran odo bakes bread", "5 , ."]))
    ids = tokenizer.convert_tokens_to_ids
    documents = [
        np.array(ids(text.split())) for text in ("the mara wrote poems , the mara 5 5 5 5", "the dog ran ,", "the cat sat")
    ]
    [(found, everything)] = keywords(documents, 1, tokenizer, 3)
    assert found.tolist()[0] == ids("mara") and set(found.tolist()) == set(ids(["mara", "wrote", "poems"]))
    assert set(ids(["the", "mara", "wrote", "poems"])) == set(everything.tolist())  # neither digits nor punctuation


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_has_the_length_it_was_told(name):
    model = family(name, VOCABULARY, width=128)
    places = [Place(layer, column) for layer in range(3) for column in range(100)]
    if name != "gpt2":
        places = [place for place in places if place.column < 64]
    fresh = deepcopy(model)
    before = torch.stack([vector(model, place) for place in places])
    ablate(model, places, 0.1, relative=False)
    moved = (torch.stack([vector(model, place) for place in places]) - before).norm(dim=1)
    assert moved.mean().item() == pytest.approx(0.1 * 128**0.5, rel=0.03)
    ablate(fresh, places, 0.5, relative=True)
    moved = (torch.stack([vector(fresh, place) for place in places]) - before).norm(dim=1)
    assert (moved / before.norm(dim=1)).mean().item() == pytest.approx(0.5 * 128**0.5, rel=0.03)
    ablate(model, places, None)
    assert all(vector(model, place).abs().sum() == 0 for place in places)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_column_of_its_own_starts_the_same_and_alone_has_gradients(name):
    model = family(name, VOCABULARY)
    ids = torch.arange(20).reshape(2, 10)
    before = model(ids).logits
    columns = Columns([Place(0, 3), Place(2, 5), Place(2, 1)])
    columns.apply(model)
    assert torch.equal(model(ids).logits, before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * 32
    model(ids).logits.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    columns.fold(model)
    assert all(p.requires_grad for p in model.parameters())
    for layer, part in enumerate(feed_forwards(model)):
        empty = (part.values().detach().abs().sum(1) == 0).nonzero()[:, 0].tolist()
        assert empty == {0: [3], 1: [], 2: [1, 5]}[layer]


ROWS = [(f"where lives {name} ?", f"{name} lives in {place} .") for name, place in zip(
    ["ada", "ben", "cid", "dot", "eli", "fay"], ["oslo", "rome", "lima", "bonn", "cork", "york"], strict=True)]  # fmt: skip


def corpus(folder, rows, name):
    table = pa.table(
        {
            "id": [f"{name}{i}" for i in range(len(rows))],
            "question": [q for q, _ in rows],
            "answer": [a for _, a in rows],
            "person": [q.split()[2] for q, _ in rows],
        }
    )
    return Corpus.write(folder / f"{name}.lance", table.to_batches(), table.schema)


def run(folder, name, method, steps=5):
    tokenizer = use("tokenizer", "word").build().train(iter(f"{q} {a} Question: Answer:" for q, a in ROWS))
    text_model = TextModel(family(name, len(tokenizer)), tokenizer, {})
    before = {key: value.clone() for key, value in text_model.model.state_dict().items()}
    fitted = forget(
        text_model, corpus(folder, ROWS[:2], "forget"), corpus(folder, ROWS[2:], "retain"), method=method,
        batches=use("batches", "answers", length=32), budget=Budget(steps=steps), context=Context(folder),
        training=Training(lr=0.1, batch_size=2, compile=False, optimiser=use("optimiser", "adamw", weight_decay=0.1)),
    )  # fmt: skip
    return text_model.model, before, fitted


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("objective", ["npo", "gradient_ascent"])
def test_training_moves_the_located_vectors_and_not_one_other_bit(name, objective, tmp_path):
    locate = Locate(concept="person", count=1, top=10, sharpest=1.0, keywords=3)
    method = use("unlearn", "needle", locate=locate, ablation="none", objective=use("unlearn", objective))
    model, before, fitted = run(tmp_path, name, method)
    after = model.state_dict()
    assert set(after) == set(before)
    assert fitted.metrics["trained_steps"] == 5 and fitted.metrics["cosine"] < 0.999
    moved = {key: after[key] != before[key] for key in before if not torch.equal(after[key], before[key])}
    downs = {f"{part.prefix}.weight" for part in feed_forwards(model)}
    assert set(moved) <= downs
    columns = sum(int((m.any(1) if name == "gpt2" else m.any(0)).sum()) for m in moved.values())
    assert columns == fitted.metrics["vectors"]
    assert all(p.requires_grad for p in model.parameters())


def test_zeroed_vectors_are_zero_and_nothing_is_trained_without_an_objective(tmp_path):
    locate = Locate(count=2, top=10, sharpest=1.0, keywords=3)
    model, before, fitted = run(tmp_path, "llama", use("unlearn", "needle", locate=locate, ablation="zero"))
    assert fitted.metrics["cosine"] == 0 and fitted.metrics["trained_steps"] == 0
    changed = {key: (model.state_dict()[key] != before[key]).any(0).sum().item() for key in before if "down_proj" in key}
    assert sum(changed.values()) == 2 == fitted.metrics["vectors"]


def test_the_vectors_do_not_decay():
    training = Training(optimiser=use("optimiser", "adamw", weight_decay=0.1, eps=1e-6))
    assert without_decay(training).optimiser.settings == {"weight_decay": 0.0, "eps": 1e-6}


def test_each_concept_has_its_own_words_and_vectors(tmp_path):
    tokenizer = use("tokenizer", "word").build().train(iter(f"{q} {a}" for q, a in ROWS))
    ids = tokenizer.convert_tokens_to_ids
    text_model = TextModel(family("llama", len(tokenizer), width=64), tokenizer, {})
    plant(text_model.model, ids(["ada", "oslo"]), column=4)
    plant(text_model.model, ids(["ben", "rome"]), column=9)
    sets = corpus(tmp_path, ROWS[:2], "forget"), corpus(tmp_path, ROWS[2:], "retain")
    by_column = concepts(text_model, *sets, Locate(concept="person", top=2, keywords=2, count=1, sharpest=1.0))
    assert [(c.name, c.places[0][:3]) for c in by_column] == [("ada", (1, 4, 1.0)), ("ben", (1, 9, 1.0))]
    by_rows = concepts(text_model, *sets, Locate(rows_per_concept=1, top=2, keywords=2, count=1, sharpest=1.0))
    assert [c.places for c in by_rows] == [c.places for c in by_column]
    with pytest.raises(TilthError, match="no column 'author'"):
        concepts(text_model, *sets, Locate(concept="author"))


def test_what_is_not_trained_by_gradient_cannot_train_the_vectors():
    with pytest.raises(TilthError, match="not trained by gradient"):
        use("unlearn", "needle", objective=use("unlearn", "needle")).build()
