"""Masks: exact counts, the 80/10/10 shares, whole words, and nothing that depends on the batch's make-up."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from tests.batches.texts import context_in, corpus_of, sentences, tokenizer_of
from tilth.batches.text.masked import Masked
from tilth.batches.text.words import WordTable
from tilth.contracts import Noise
from tilth.errors import TilthError

TEXTS = sentences(120)
TOKENIZER = tokenizer_of(TEXTS)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    corpus, context = corpus_of(folder, TEXTS), context_in(folder)
    return lambda **settings: Masked(length=64, **settings).build(corpus, TOKENIZER, context)


def drawn(examples, start=0, seed=0, count=None):
    count = count or len(examples) - 1  # without the last row, which is not full
    return examples.batch(np.arange(count), Noise(seed, start + np.arange(count)))


@pytest.mark.parametrize(("ratio", "count"), [(0.15, 10), (0.5, 32), (0.001, 1), (0.4, 26)])
@pytest.mark.parametrize("whole_word", [False, True])
def test_every_full_row_has_exactly_the_same_number_of_targets(make, ratio, count, whole_word):
    batch = drawn(make(mask_ratio=ratio, whole_word=whole_word))
    found = (batch.labels != -100).sum(1)
    assert batch.positions.shape[1] == count
    if whole_word:
        assert found.max() == count and found.min() >= count - 4 and (found == count).float().mean() > 0.7
    else:
        assert (found == count).all()


def test_positions_name_all_targets_and_labels_the_original_tokens(make):
    examples = make()
    batch = examples.batch(np.arange(len(examples)), Noise(0, np.arange(len(examples))))
    named = batch.labels.gather(1, batch.positions)
    assert (named != -100).sum() == (batch.labels != -100).sum()
    original, inside = examples.chunks.windows(np.arange(len(examples)))
    targets = batch.labels.numpy() != -100
    assert np.array_equal(batch.labels.numpy()[targets], original[targets])
    assert np.array_equal(batch.input_ids.numpy()[~targets], original[~targets])
    assert not (targets & ~inside).any() and np.array_equal(batch.attention_mask.numpy(), inside)
    assert "attention_mask" not in drawn(examples)


def test_special_tokens_are_neither_masked_nor_put_in(make):
    examples = make(mask_ratio=0.9, mask_share=0.0, random_share=1.0)
    batch = drawn(examples)
    original, _ = examples.chunks.windows(np.arange(len(examples) - 1))
    special = np.isin(original, TOKENIZER.all_special_ids)
    assert special.any() and not (batch.labels.numpy()[special] != -100).any()
    assert np.array_equal(np.isin(batch.input_ids.numpy(), TOKENIZER.all_special_ids), special)


def test_shares_are_80_10_10_and_random_tokens_are_uniform(make):
    examples = make(mask_ratio=0.3)
    shown, truth = [], []
    for start in range(0, 40_000, 400):
        batch = drawn(examples, start)
        target = batch.labels != -100
        shown.append(batch.input_ids[target])
        truth.append(batch.labels[target])
    shown, truth = torch.cat(shown), torch.cat(truth)
    masked = shown == TOKENIZER.mask_token_id
    other = (shown != truth) & ~masked
    n = len(shown)
    ordinary = len(TOKENIZER) - 4
    for found, expected in ((masked, 0.8), (other, 0.1 * (1 - 1 / ordinary)), (shown == truth, 0.1 * (1 + 1 / ordinary))):
        assert abs(found.float().mean() - expected) < 4 * (expected * (1 - expected) / n) ** 0.5
    counts = torch.bincount(shown[other], minlength=len(TOKENIZER)).float()[4:]
    assert counts.min() > 0 and counts.std() / counts.mean() < 2 / counts.mean() ** 0.5


def test_every_token_is_masked_equally_often(make):
    examples = make(mask_ratio=0.25)
    original, _ = examples.chunks.windows(np.arange(3))
    total = sum((drawn(examples, 3 * n, count=3).labels != -100).numpy() for n in range(2000))
    share = total / 2000
    maskable = ~np.isin(original, TOKENIZER.all_special_ids)
    expected = np.where(maskable, 16 / maskable.sum(1, keepdims=True), 0)
    assert np.abs(share - expected).max() < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_masks_depend_on_the_position_in_the_run_and_nothing_else(make):
    for whole_word in (False, True):
        examples = make(whole_word=whole_word)
        together = examples.batch(np.array([4, 1, 6, 1]), Noise(7, np.array([10, 11, 12, 13])))
        alone = examples.batch(np.array([6]), Noise(7, np.array([12])))
        for name in together:
            assert torch.equal(together[name][2:3], alone[name])
        assert not torch.equal(together.labels[1], together.labels[3]), "the same row gets another mask the next time"
        assert not torch.equal(alone.labels, examples.batch(np.array([6]), Noise(8, np.array([12]))).labels)


def test_a_masked_word_is_masked_whole(make):
    examples = make(mask_ratio=0.3, whole_word=True)
    count = len(examples) - 1
    batch = drawn(examples)
    original, _ = examples.chunks.windows(np.arange(count))
    starts = WordTable(TOKENIZER).starts(original)
    word = np.cumsum(starts, axis=1) + 1000 * np.arange(count)[:, None]
    target = batch.labels.numpy() != -100
    assert not set(word[target]) & set(word[~target])
    assert max(np.bincount(word[target])) > 1


def test_words_are_found_from_the_vocabulary_alone():
    ids = np.array([TOKENIZER(" barley furrows, größe 17 crows;na", add_special_tokens=False)["input_ids"]])
    starts = WordTable(TOKENIZER).starts(ids)[0]
    words = [TOKENIZER.decode(part) for part in np.split(ids[0], np.flatnonzero(starts)[1:])]
    assert [word.strip() for word in words] == ["barley", "furrows", ",", "größe", "1", "7", "crows", ";", "na"] or [
        word.strip() for word in words
    ] == ["barley", "furrows", ",", "größe", "17", "crows", ";", "na"]


def test_word_pieces_say_themselves_that_they_go_on(tmp_path):
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bar", "##ley", "##7", ",", "a"])
    )
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    ids = np.array([tokenizer("barley7,a bar", add_special_tokens=False)["input_ids"]])
    assert WordTable(tokenizer).starts(ids)[0].tolist() == [True, False, False, True, True, True]


def test_labels_follow_the_conventions_of_transformers(make):
    """Same ignored label, labels aligned with inputs, targets keep their token when they are not replaced."""
    torch.manual_seed(0)
    examples = make(mask_ratio=0.3)
    original, _ = examples.chunks.windows(np.arange(20))
    collate = DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.3)
    theirs = collate([{"input_ids": row} for row in torch.from_numpy(original)])
    ours = drawn(examples, count=20)
    for batch in (theirs, ours):
        target = batch["labels"] != -100
        assert batch["labels"].dtype == torch.int64 and torch.equal(batch["labels"][target], torch.from_numpy(original)[target])
        assert torch.equal(batch["input_ids"][~target], torch.from_numpy(original)[~target])
        assert abs((batch["input_ids"][target] == TOKENIZER.mask_token_id).float().mean() - 0.8) < 0.1


def test_settings_and_tokenisers_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(TilthError, match="more than 1"):
        Masked(mask_share=0.8, random_share=0.3)
    tokenizer = tokenizer_of(TEXTS)
    tokenizer.mask_token = None
    with pytest.raises(TilthError, match="no mask token"):
        Masked().build(corpus_of(tmp_path, TEXTS), tokenizer, context_in(tmp_path))
