"""Tokenisers: text comes back, training is deterministic, what is saved is an ordinary transformers folder."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.batches.texts import sentences, tokenizer_of
from tilth.batches.text.encoding import Encoder, core, digest
from tilth.batches.text.tokenizers import BPE, Word
from tilth.errors import TilthError

TOKENIZER = tokenizer_of(sentences(200), sentinels=5)
ENCODER = Encoder(TOKENIZER)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_bpe_returns_any_text_unchanged(text):
    ids, lengths = ENCODER([text])
    assert TOKENIZER.decode(ids) == text and lengths.tolist() == [len(ids)]


@pytest.mark.parametrize("text", ["a </s> b <pad><mask>", "<extra_id_0>", "<s>"])
def test_names_of_special_tokens_in_a_text_are_letters(text):
    ids, _ = ENCODER([text])
    assert not set(ids.tolist()) & set(TOKENIZER.all_special_ids)
    assert TOKENIZER.decode(ids) == text


def test_sentinels_stand_at_the_top_of_the_vocabulary_first_one_last():
    assert len(TOKENIZER) == 400
    assert TOKENIZER.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(5)]) == [399, 398, 397, 396, 395]


def test_what_is_saved_loads_without_tilth_and_encodes_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "naïve crows </s>\n\n  count\t17; 麦"
    assert again(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id, again.mask_token_id) == (0, 1, 2, 3)
    assert digest(again) == digest(TOKENIZER) and len(again) == 400


def test_training_does_not_depend_on_the_process():
    """Another process hashes strings differently; neither vocabulary nor merges may follow from that."""
    code = (
        "from tests.batches.texts import sentences; from tilth.batches.text.encoding import core;"
        "from tilth.batches.text.tokenizers import BPE, Word; texts = sentences(100);"
        "print(core(BPE(vocab_size=330, sentinels=3).train(iter(texts))), core(Word(vocab_size=15).train(iter(texts))))"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    texts = sentences(100)
    here = core(BPE(vocab_size=330, sentinels=3).train(iter(texts))), core(Word(vocab_size=15).train(iter(texts)))
    assert elsewhere == " ".join(here) + "\n"


def test_the_digest_sees_another_vocabulary_and_another_end_token():
    other = tokenizer_of(sentences(200), sentinels=4)
    assert digest(other) != digest(TOKENIZER)
    other = tokenizer_of(sentences(200), sentinels=5)
    assert digest(other) == digest(TOKENIZER)
    other.eos_token = "<s>"
    assert digest(other) != digest(TOKENIZER)


def test_words_are_letter_runs_single_digits_and_single_marks():
    tokenizer = Word().train(iter(["Größe_12: don't --  naïve"]))
    ids, _ = Encoder(tokenizer)(["naïve Größe_21 --unseen"])
    words = ["naïve", "Größe", "_", "2", "1", "-", "-", "<unk>"]
    assert tokenizer.convert_ids_to_tokens(ids) == words


def test_words_are_kept_by_frequency():
    texts = ["b b b a a c"]
    kept = Word(vocab_size=7).train(iter(texts))
    assert kept.convert_ids_to_tokens(range(5, 7)) == ["b", "a"] and len(kept) == 7
    assert len(Word(min_frequency=2).train(iter(texts))) == 7
    assert len(Word(sentinels=2).train(iter(texts))) == 10


@pytest.mark.parametrize("make", [lambda: BPE(vocab_size=260, sentinels=1), lambda: Word(vocab_size=5)])
def test_a_vocabulary_too_small_for_what_must_be_in_it_is_refused(make):
    with pytest.raises(TilthError, match="cannot hold"):
        make()


def test_a_tokeniser_without_a_fast_core_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(TilthError, match="has no tokenizer"):
        Encoder(CanineTokenizer())
