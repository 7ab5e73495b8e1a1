import numpy as np
import pytest
import torch

from tests.evaluate.tiny import clock, llama, models, tokenizer, uniform
from tilth.batches.text.answers import encode_answers
from tilth.errors import TilthError
from tilth.evaluate import likelihood
from tilth.evaluate.likelihood import Sequences, token_statistics


def rows(side, count=9, longest=14, extra=0):
    """Padded arrays of random sequences whose targets begin somewhere inside; padding holds random tokens."""
    generator = np.random.default_rng(0)
    width = longest + extra
    ids = generator.integers(1, 50, size=(count, width))
    labels, mask = np.full((count, width), -100), np.zeros((count, width), dtype=int)
    draw = np.random.default_rng(1)
    for row in range(count):
        size = int(draw.integers(4, longest + 1))
        begin = int(draw.integers(1, size))
        start = 0 if side == "right" else width - size
        content = draw.integers(1, 50, size=size)
        ids[row, start : start + size], mask[row, start : start + size] = content, 1
        labels[row, start + begin : start + size] = content[begin:]
    return Sequences.of_rows(ids, labels, mask)


def by_the_book(model, sequences):
    """One sequence at a time, whole logits, no padding."""
    found = []
    for start, stop in zip(sequences.starts[:-1], sequences.starts[1:], strict=True):
        ids = torch.tensor(sequences.ids[start:stop]).long()
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for at in np.flatnonzero(sequences.scored[start:stop]):
            found.append([logits[at - 1, ids[at]].item(), float(logits[at - 1].argmax() == ids[at]),
                          (logits[at - 1].exp() * logits[at - 1]).sum().item(),
                          (logits[at - 1].exp() * logits[at - 1] ** 2).sum().item()])  # fmt: skip
    return np.array(found).T


@models
def test_equals_one_sequence_at_a_time(model):
    sequences = rows("right")
    found = token_statistics(model, sequences, moments=True)
    log_probability, hits, mean, second = by_the_book(model, sequences)
    assert found.log_probability == pytest.approx(log_probability, abs=1e-5)
    assert found.hits.tolist() == hits.astype(bool).tolist()
    assert found.mean == pytest.approx(mean, abs=1e-4)
    assert found.variance == pytest.approx(second - mean**2, abs=1e-3)


@models
def test_neither_padding_nor_batches_change_anything(model):
    right, left, wide = rows("right"), rows("left"), rows("right", extra=6)
    reference = token_statistics(model, right, batch_tokens=1)  # one sequence at a time
    for sequences in (right, left, wide):
        for batch_tokens in (30, 10_000):
            found = token_statistics(model, sequences, batch_tokens=batch_tokens)
            assert found.average == pytest.approx(reference.average, abs=1e-5)
            assert found.log_probability == pytest.approx(reference.log_probability, abs=1e-5)
            assert np.array_equal(found.starts, reference.starts)


def test_sums_and_counts_of_answers_include_the_end_token():
    tokens = tokenizer()
    encoded = encode_answers(["where is Mara", "who bakes"], ["in the big town", "Odo"], tokens)
    sequences = Sequences.of_rows(encoded.input_ids, encoded.labels, encoded.attention_mask)
    found = token_statistics(uniform(len(tokens)), sequences)
    assert found.count.tolist() == [5, 2]
    assert found.nll == pytest.approx(np.array([5, 2]) * np.log(len(tokens)), rel=1e-6)
    assert np.exp(-found.average) == pytest.approx([1 / len(tokens)] * 2, rel=1e-5)  # whatever the length


def test_a_model_that_counts_hits_every_token():
    sequences = Sequences(np.array([3, 4, 5, 6, 9, 8, 9]), np.array([0, 4, 7]), np.array([0, 1, 1, 1, 0, 1, 1], dtype=bool))
    found = token_statistics(clock(12), sequences)
    assert found.hits.tolist() == [True, True, True, False, True]
    assert found.average[0] < 1e-3 < found.average[1]


def test_a_tie_is_decided_as_greedy_decoding_decides_it():
    """A uniform model predicts the first token of the vocabulary and knows no answer by heart."""
    sequences = Sequences(np.array([3, 4, 0, 6]), np.array([0, 4]), np.array([0, 1, 1, 1], dtype=bool))
    assert token_statistics(uniform(12), sequences).hits.tolist() == [False, True, False]


def test_logits_exist_only_where_something_is_scored(monkeypatch):
    model, seen = llama(50), []
    monkeypatch.setattr(
        model.lm_head, "forward", lambda hidden: seen.append(hidden.shape[:-1].numel()) or torch.zeros(*hidden.shape[:-1], 50)
    )
    sequences = rows("right")
    token_statistics(model, sequences)
    assert sum(seen) == sequences.scored.sum()


def test_the_first_token_of_a_sequence_is_never_a_target():
    sequences = Sequences.of_rows(
        np.array([[7, 8, 9], [1, 8, 9]]), np.array([[7, 8, 9], [-100, -100, 9]]), np.array([[1, 1, 1], [0, 1, 1]])
    )
    assert sequences.scored.tolist() == [False, True, True, False, True]


def test_the_model_keeps_its_mode():
    model = llama(50).train()
    token_statistics(model, rows("right"))
    assert model.training and model.model.layers[0].training


def test_sequences_without_targets_count_nothing():
    sequences = Sequences(np.array([3, 4, 5, 6]), np.array([0, 2, 2, 4, 4]), np.array([0, 0, 0, 1], dtype=bool))
    found = token_statistics(llama(50), sequences)
    assert found.count.tolist() == [0, 0, 1, 0] and found.average[0] == 0


def test_a_broken_model_is_reported():
    model = llama(50)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(TilthError, match="not numbers"):
        token_statistics(model, rows("right"))


def test_batches_bound_their_logits(monkeypatch):
    monkeypatch.setattr(likelihood, "_LOGITS", 50 * 20)
    sizes = [len(batch) for batch in likelihood._batches(rows("right"), 10_000, 50)]
    assert max(sizes) <= 20 // 4 and sum(sizes) == 9
