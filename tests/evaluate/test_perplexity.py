import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.tiny import corpus, gpt2, llama, tokenizer, uniform
from tilth.backbones.folder import save
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate.ngram import KneserNey
from tilth.evaluate.perplexity import Perplexity, cut

TEXTS = ["the cat finds a book at the tree", "", "Mara is in the big green town", "who plays ? a dog", None, "é the red dog"]


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    held_out = corpus(tmp_path / "held.lance", [{"id": str(row), "text": text} for row, text in enumerate(TEXTS)])
    train = corpus(tmp_path / "train.lance", [{"id": str(row), "text": text} for row, text in enumerate(TEXTS[2:] * 3)])
    return Context(folder=tmp_path / "stage", corpora={"held_out": held_out, "train": train}, shared=tmp_path / "shared")


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.integers(2, 12).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length - 1))),
)
def test_windows_score_every_token_once_with_the_context_promised(sizes, window):
    length, stride = window
    starts = np.cumsum([0, *sizes])
    tokens = np.arange(100, 100 + starts[-1])
    windows = cut(tokens, starts, 7, length, stride)
    sequences = windows.sequences
    assert sorted(windows.tokens.tolist()) == list(range(len(tokens)))
    assert np.array_equal(sequences.ids[sequences.scored], tokens[windows.tokens])
    number = 0
    for begin, end in zip(sequences.starts[:-1], sequences.starts[1:], strict=True):
        assert end - begin <= length
        for at in np.flatnonzero(sequences.scored[begin:end]):
            token = windows.tokens[number]
            number += 1
            document = np.searchsorted(starts, token, side="right") - 1
            whole = [7, *tokens[starts[document] : starts[document + 1]].tolist()]
            place = int(token - starts[document]) + 1
            assert at >= min(place, length - stride)
            assert sequences.ids[begin : begin + at].tolist() == whole[place - at : place]


def by_the_book(model, tokens):
    """Each document alone, from the end token, without windows: summed -log p of all its tokens and its end."""
    found = []
    for text in TEXTS:
        ids = [*tokens(text or "", add_special_tokens=False).input_ids]
        ids = [*ids, tokens.eos_token_id] if ids else []
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[tokens.eos_token_id, *ids]])).logits[0].double().log_softmax(-1)
        found.append(-sum(logits[at, token].item() for at, token in enumerate(ids)))
    return found


@pytest.mark.parametrize("make", [llama, gpt2])
def test_equals_each_document_alone(bed, tmp_path, make):
    tokens = tokenizer()
    model = make(len(tokens))
    scores = Perplexity(data="held_out")(save(model, tokens, tmp_path / "model"), bed)
    expected = by_the_book(model, tokens)
    count = sum(len(tokens(text).input_ids) + 1 for text in TEXTS if text)
    assert scores.details["nll"] == pytest.approx(expected, abs=1e-4)
    assert scores.metrics["tokens"] == count
    assert scores.metrics["perplexity"] == pytest.approx(np.exp(sum(expected) / count), rel=1e-5)
    text = "".join(text or "" for text in TEXTS)
    assert scores.metrics["bits_per_byte"] == pytest.approx(sum(expected) / np.log(2) / len(text.encode()), rel=1e-5)
    assert scores.metrics["bits_per_character"] == pytest.approx(sum(expected) / np.log(2) / len(text), rel=1e-5)


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity_in_any_window(bed, tmp_path):
    tokens = tokenizer()
    folder = save(uniform(len(tokens)), tokens, tmp_path / "model")
    for window in ({}, {"length": 4, "stride": 3}, {"length": 2}):
        assert Perplexity(data="held_out", **window)(folder, bed).metrics["perplexity"] == pytest.approx(len(tokens), rel=1e-5)


def test_the_n_gram_model_scores_the_same_tokens(bed, tmp_path):
    tokens = tokenizer()
    scores = Perplexity(data="held_out", against="train", order=3)(save(llama(len(tokens)), tokens, tmp_path / "model"), bed)

    def encoded(texts):
        ids = [[*tokens(text).input_ids, tokens.eos_token_id] for text in texts if text]
        return np.concatenate(ids), np.cumsum([0, *map(len, ids)])

    rival = KneserNey(*encoded(TEXTS[2:] * 3), vocabulary=len(tokens), start=tokens.eos_token_id, order=3)
    log_probability = rival.log_probabilities(*encoded(TEXTS))
    assert len(log_probability) == scores.metrics["tokens"]
    assert scores.metrics["ngram_perplexity"] == pytest.approx(np.exp(-log_probability.mean()))
    assert sum(scores.details["ngram_nll"]) == pytest.approx(-log_probability.sum())
    [table] = [entry for entry in exhibits(bed.folder) if entry["kind"] == "table"]
    assert [row[0] for row in table["rows"]] == ["this model", "3-gram, Kneser-Ney"]


def test_a_limit_of_tokens_takes_whole_documents(bed, tmp_path):
    tokens = tokenizer()
    scores = Perplexity(data="held_out", tokens=9)(save(uniform(len(tokens)), tokens, tmp_path / "model"), bed)
    assert scores.details["id"] == ["0"] and scores.metrics["tokens"] == 9
    scores = Perplexity(data="held_out", tokens=10)(tmp_path / "model", bed)
    assert scores.details["id"] == ["0", "1", "2"]
    assert scores.metrics["bits_per_byte"] == pytest.approx(
        scores.metrics["tokens"] * np.log2(len(tokens)) / len("".join(TEXTS[:3]).encode()), rel=1e-5
    )


def test_a_stride_without_context_is_refused():
    with pytest.raises(TilthError, match="no context"):
        Perplexity(data="held_out", length=8, stride=8)
