import numpy as np
from transformers import PreTrainedTokenizerFast

from tests.evaluate.tiny import tokenizer
from tilth.contracts import use
from tilth.unlearn.entities import entity_tokens, entity_words, overlapping


def pieces() -> PreTrainedTokenizerFast:
    return use("tokenizer", "bpe", vocab_size=300).build().train(iter(["the cat of Behrouz Rohani and the dog of Mara"] * 2))


def test_overlap_is_of_half_open_intervals():
    tokens = np.array([[0, 3], [3, 5], [5, 9], [9, 9], [9, 12]])
    assert overlapping(tokens, np.array([[3, 5]])).tolist() == [False, True, False, False, False]
    assert overlapping(tokens, np.array([[4, 6], [11, 20]])).tolist() == [False, True, True, False, True]
    assert overlapping(tokens, np.empty((0, 2))).tolist() == [False] * 5


def test_a_name_of_several_pieces_is_covered_whole():
    tokens = pieces()
    ids = tokens("the dog of Kzwq, Behrouz", add_special_tokens=False).input_ids
    chosen = entity_tokens(ids, tokens, ["kzwq"])
    assert chosen.sum() > 1
    assert tokens.decode([i for i, c in zip(ids, chosen) if c]).strip() == "Kzwq"
    assert not entity_tokens(ids, tokens, ["the dog", "zwq"]).any()


def test_whole_word_tokenisers_too():
    tokens = tokenizer()
    ids = tokens("where lives Mara ?", add_special_tokens=False).input_ids
    assert entity_tokens(ids, tokens, ["mara"]).tolist() == [False, False, True, False]


def test_entities_are_words_of_the_forget_set_alone():
    inside = ["Where was Basil Mahfouz born?", "Basil's books", "Did Mahfouz travel?"]
    assert entity_words(inside, ["Where was Ada born?", "Did Ada write books, Basil?"]) == ["mahfouz"]
    assert entity_words(inside, [], often=1) != entity_words(inside, [], often=2) == ["basil", "mahfouz"]
