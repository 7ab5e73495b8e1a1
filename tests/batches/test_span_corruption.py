"""Span corruption: lossless, exact counts, T5's own lengths, fixed shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.batches.texts import context_in, corpus_of, sentences, tokenizer_of
from tilth.batches.text.span_corruption import SpanCorruption, corrupt, raw_length
from tilth.batches.text.span_corruption import _parts as parts
from tilth.context import Progress
from tilth.contracts import Noise
from tilth.errors import TilthError

TEXTS = sentences(200)
TOKENIZER = tokenizer_of(TEXTS, vocab_size=500, sentinels=40)
SENTINELS = np.arange(999, 899, -1)


def restored(inputs, targets, sentinels, end):
    """The raw row: each sentinel of the inputs replaced by what the targets say it stands for."""
    stands_for, name = {}, None
    for token in targets[:-1]:
        if token in sentinels:
            name = token
            stands_for[name] = []
        else:
            stands_for[name].append(token)
    assert inputs[-1] == targets[-1] == end
    return [token for item in inputs[:-1] for token in stands_for.get(item, [item])]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_inputs_and_targets_restore_the_raw_tokens(data):
    raw = data.draw(st.integers(2, 60))
    noise = data.draw(st.integers(1, raw - 1))
    spans = data.draw(st.integers(1, min(noise, raw - noise)))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ids = draw.integers(0, 800, (3, raw))
    hidden, clean = parts(draw.random((3, noise - 1)), noise, spans), parts(draw.random((3, raw - noise - 1)), raw - noise, spans)
    inputs, targets = corrupt(ids, clean, hidden, SENTINELS, end=900 - 1)
    assert inputs.shape == (3, raw - noise + spans + 1) and targets.shape == (3, noise + spans + 1)
    for row in range(3):
        assert restored(inputs[row].tolist(), targets[row].tolist(), set(SENTINELS[:spans].tolist()), 899) == ids[row].tolist()
        for side in (inputs[row], targets[row]):
            assert side[side >= 900].tolist() == SENTINELS[:spans].tolist(), "sentinels fall from the top, the same on both sides"
        assert inputs[row, 0] < 900 and targets[row, 0] == 999, "a row starts clean"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_parts_are_positive_and_add_up(case):
    total, count = case
    found = parts(np.random.default_rng(0).random((20, total - 1)), total, count)
    assert found.shape == (20, count) and found.min() >= 1 and (found.sum(1) == total).all()


def test_every_composition_is_equally_likely():
    found = parts(np.random.default_rng(0).random((60_000, 5)), 6, 3)  # 10 ways to write 6 as three positive numbers
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 10 and np.abs(counts - 6000).max() < 5 * 6000**0.5


@pytest.mark.parametrize(
    ("mean", "density", "raw", "targets"),
    [(3, 0.15, 568, 114), (8, 0.15, 588, 100), (3, 0.5, 766, 512), (8, 0.5, 908, 512), (64, 0.15, 600, 92), (64, 0.5, 1006, 512)],
)
def test_lengths_are_those_of_t5_and_ul2(mean, density, raw, targets):
    found, noise, spans = raw_length(512, density, mean)
    assert (found, noise + spans + 1) == (raw, targets)
    assert noise == round(found * density) and spans == max(1, round(noise / mean))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    return SpanCorruption(length=48).build(corpus_of(folder, TEXTS), TOKENIZER, context_in(folder))


def test_batches_fill_the_encoder_exactly_and_restore_the_corpus(rows):
    everywhere = np.arange(len(rows))
    batch = rows.batch(everywhere, Noise(0, everywhere))
    assert batch.input_ids.shape[1] == 48 and batch.labels.shape[1] == rows.noise + rows.spans + 1
    assert batch.tokens == batch.input_ids.numel() + batch.labels.numel()
    end, sentinels = TOKENIZER.eos_token_id, set(rows.sentinels.tolist())
    found = [restored(i, t, sentinels, end) for i, t in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)]
    flat = [token for row in found for token in row]
    store = rows.chunks.store
    assert flat == store.tokens[: len(flat)].tolist() and len(store.tokens) - len(flat) == rows.unused < rows.raw


def test_spans_depend_on_the_position_in_the_run_and_nothing_else(rows):
    together = rows.batch(np.array([2, 5, 2]), Noise(3, np.array([7, 8, 9])))
    alone = rows.batch(np.array([5]), Noise(3, np.array([8])))
    assert torch.equal(together.input_ids[1:2], alone.input_ids) and torch.equal(together.labels[1:2], alone.labels)
    assert not torch.equal(together.input_ids[0], together.input_ids[2])


def test_what_is_hidden_does_not_show_in_the_inputs():
    clean, hidden = np.array([[2, 3]]), np.array([[2, 1]])
    rows = np.array([[1, 2, 50, 51, 3, 4, 5, 52], [1, 2, 60, 61, 3, 4, 5, 62]])
    inputs, targets = corrupt(rows, clean.repeat(2, 0), hidden.repeat(2, 0), SENTINELS, 0)
    assert inputs.tolist() == [[1, 2, 999, 3, 4, 5, 998, 0]] * 2
    assert targets.tolist() == [[999, 50, 51, 998, 52, 0], [999, 60, 61, 998, 62, 0]]


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_tokens_that_are_not_used_are_said_and_too_few_are_refused(tmp_path):
    context = context_in(tmp_path)
    context.progress = Said()
    rows = SpanCorruption(length=48).build(corpus_of(tmp_path, TEXTS), TOKENIZER, context)
    assert f"the last {rows.unused} tokens" in context.progress.lines[0]
    with pytest.raises(TilthError, match="fewer than the"):
        SpanCorruption(length=48).build(corpus_of(tmp_path / "b", ["one"]), TOKENIZER, context)


def test_a_tokeniser_without_enough_sentinels_is_refused(tmp_path):
    with pytest.raises(TilthError, match="needs 7 sentinels and the tokeniser has 2"):
        SpanCorruption().build(corpus_of(tmp_path, TEXTS), tokenizer_of(TEXTS, sentinels=2), context_in(tmp_path))
