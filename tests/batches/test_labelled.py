"""Texts with classes: framed as the tokeniser frames them, classes in a fixed order."""

import numpy as np
import pytest
from transformers import BertTokenizerFast

from tests.batches.texts import context_in, corpus_of, sentences, tokenizer_of
from tilth.batches.text.labelled import Labelled
from tilth.errors import TilthError

TEXTS = [*sentences(20), "", None]
TOKENIZER = tokenizer_of(sentences(100))


def test_texts_end_with_the_end_token_and_classes_are_indices(tmp_path):
    corpus = corpus_of(tmp_path, TEXTS, label=["wheat" if row % 3 else "oats" for row in range(len(TEXTS))])
    examples = Labelled().build(corpus, TOKENIZER, context_in(tmp_path))
    batch = examples.batch(np.arange(len(examples)))
    assert examples.classes == ["oats", "wheat"] and batch.labels.tolist() == [int(row % 3 > 0) for row in range(len(TEXTS))]
    for row, text in enumerate(TEXTS):
        expected = [*TOKENIZER(text or "")["input_ids"], TOKENIZER.eos_token_id]
        assert batch.input_ids[row][batch.attention_mask[row].bool()].tolist() == expected
    assert batch.input_ids.shape[1] % 8 == 0 and examples.batch(np.array([20, 21])).input_ids.shape[1] == 8


def test_a_tokeniser_with_a_frame_keeps_it_when_texts_are_cut(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bar", "##ley", "rain"]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    corpus = corpus_of(tmp_path, ["barley rain barley rain", "rain"], label=[1, 0])
    examples = Labelled(length=5).build(corpus, tokenizer, context_in(tmp_path))
    assert examples.input_ids.tolist() == [[2, 5, 6, 7, 3], [2, 7, 3, 0, 0]] and examples.truncated == 1


def test_numeric_classes_are_in_numeric_order_and_given_classes_are_kept(tmp_path):
    corpus = corpus_of(tmp_path, ["a", "b", "c"], label=[10, 2, 2])
    assert Labelled().build(corpus, TOKENIZER, context_in(tmp_path)).classes == ["2", "10"]
    given = Labelled(classes=["10", "5", "2"]).build(corpus, TOKENIZER, context_in(tmp_path))
    assert given.labels.tolist() == [0, 2, 2]
    with pytest.raises(TilthError, match="row '0': '10' is not one of the classes"):
        Labelled(classes=["2"]).build(corpus, TOKENIZER, context_in(tmp_path))


def test_a_missing_class_is_refused_by_name(tmp_path):
    with pytest.raises(TilthError, match="row '1': the label is missing"):
        Labelled().build(corpus_of(tmp_path, ["a", "b"], label=["x", None]), TOKENIZER, context_in(tmp_path))
