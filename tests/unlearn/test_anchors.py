"""Anchored terms: what is found, what replaces it, what is mined; and where tokens stand after it."""

import json

import numpy as np
import pytest

from tilth.contracts import use
from tilth.errors import TilthError
from tilth.unlearn.anchors import Anchors, load_anchors, mine_anchors
from tilth.unlearn.translation import Translator

TERMS = {
    "Harry": "Jon",
    "Harry Potter": "Jon Smith",
    "Ron": "Tom",
    "Hogwarts": "Mystic Academy",
    "Ángel": "Pete",
    "O'Brien": "Lee",
}
TEXT = 'Harry Potter went to Hogwarts.\n"Harry," said Ron\'s friend Ángel to O\'Brien, "HOGWARTS is for Ronald (Harry) and hogwarts."'
TRANSLATED = (
    'Jon Smith went to Mystic Academy.\n"Jon," said Tom\'s friend Pete to Lee, "MYSTIC ACADEMY is for Ronald (Jon) and hogwarts."'
)


def bpe(size=400):
    return use("tokenizer", "bpe", vocab_size=size).build().train(iter([TEXT, TRANSLATED] * 3))


def word():
    return use("tokenizer", "word").build().train(iter([f"{TEXT} {TRANSLATED} a"]))


def encode(tokenizer, text):
    return np.array(tokenizer(text, add_special_tokens=False).input_ids)


def test_the_longest_term_wins_whole_words_only_in_every_case():
    assert Anchors(TERMS).translate(TEXT) == TRANSLATED
    assert [match.term for match in Anchors(TERMS).find("Harry Potter, Harry")] == ["Harry Potter", "Harry"]
    assert Anchors({"Ron": "Tom"}).translate("Ronald, Ron, Byron") == "Ronald, Tom, Byron"
    assert Anchors({"Ron": "Tom"}, boundaries=False).translate("Ronald") == "Tomald"


def test_a_term_is_found_however_its_words_are_spaced():
    assert Anchors(TERMS).translate("Harry\n  Potter O ' Brien") == "Jon Smith Lee"


def test_an_empty_dictionary_is_the_identity():
    translation = Translator(bpe(), Anchors({}))(encode(bpe(), TEXT))
    assert np.array_equal(translation.ids, encode(bpe(), TEXT))
    assert np.array_equal(translation.aligned, np.arange(len(translation.ids)))
    assert not translation.repeated.any() and translation.seen == []


def test_one_token_that_becomes_two_moves_what_is_behind_it_by_one():
    tokenizer = word()
    ids = encode(tokenizer, "went to Hogwarts is for Ronald")
    translation = Translator(tokenizer, Anchors({"Hogwarts": "Mystic Academy"}))(ids)
    assert tokenizer.convert_ids_to_tokens(translation.ids) == ["went", "to", "Mystic", "Academy", "is", "for", "Ronald"]
    assert translation.aligned.tolist() == [0, 1, 2, 4, 5, 6]


def test_two_tokens_that_become_one_both_stand_at_its_start():
    tokenizer = word()
    translation = Translator(tokenizer, Anchors({"Harry Potter": "Jon"}))(encode(tokenizer, "said Harry Potter to"))
    assert tokenizer.convert_ids_to_tokens(translation.ids) == ["said", "Jon", "to"]
    assert translation.aligned.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("size", [270, 300, 400])
def test_the_translated_tokens_spell_the_translated_text_and_untouched_tokens_stay(size):
    tokenizer = bpe(size)
    ids = encode(tokenizer, TEXT)
    translation = Translator(tokenizer, Anchors(TERMS))(ids)
    assert tokenizer.decode(translation.ids) == TRANSLATED
    same = translation.ids[translation.aligned] == ids
    assert len(translation.aligned) == len(ids) and (np.diff(translation.aligned) >= 0).all()
    assert tokenizer.decode(ids[same]).count("went to") == 1 and same.mean() > 0.5


def test_from_the_second_occurrence_on_a_term_is_repeated():
    tokenizer = word()
    ids = encode(tokenizer, "Harry went to Ron . Harry said Ron is Harry Potter")
    translation = Translator(tokenizer, Anchors(TERMS))(ids)
    repeated = [tokenizer.convert_ids_to_tokens(int(token)) for token in ids[translation.repeated]]
    assert repeated == ["Harry", "Ron"] and not translation.repeated[0]
    first = {tokenizer.convert_ids_to_tokens(tokens[0]): begin for begin, tokens in translation.seen if len(tokens) == 1}
    assert first["Tom"] == 4


def test_names_are_mined_by_how_much_more_often_they_occur():
    forget = ["Romeo loves Juliet. Then Romeo and ROMEO went. The sun. Juliet said then the word. And Juliet."] * 3
    retain = ["Henry went to Edward. Then the king said Henry. And the sun, and then Henry. The word. Edward!"] * 3
    assert mine_anchors(forget, retain, most=10, ratio=2.0) == {"Juliet": "Henry", "Romeo": "Edward"}
    assert list(mine_anchors(forget, retain, most=1, ratio=2.0)) == ["Juliet"]
    assert mine_anchors(forget, ["no names here"], most=10) == {}


def test_a_strict_ratio_for_terms_leaves_enough_counterparts():
    forget = [*["Romeo and Juliet, Romeo and Juliet."] * 20, "Henry, Henry"]
    retain = ["Henry and Edward. Henry and Edward."] * 40  # Henry is 14 times as frequent here, Edward 40 times
    assert mine_anchors(forget, retain, most=10, ratio=20.0) == {"Juliet": "Edward", "Romeo": "Henry"}


def test_what_often_stands_before_a_name_belongs_to_it():
    forget = [
        "FRIAR LAURENCE:\nI am here. Friar Laurence comes. O Romeo! Romeo and Romeo, Romeo and ROMEO.\nFriar\nLaurence is a Friar, Laurence."
    ] * 3
    retain = ["Henry spoke. Edward spoke. O Henry! A friar spoke, a friar came."] * 9
    names = {"Laurence": "Henry", "Romeo": "Edward"}
    alone = mine_anchors(forget, retain, most=10, ratio=2.0)
    assert alone.keys() == names.keys()
    # 'O' stands before one Romeo in five; on another line, or behind a comma, a Friar is no title
    assert mine_anchors(forget, retain, most=10, ratio=2.0, titles=True) == alone | {"Friar Laurence": alone["Laurence"]}
    found = Anchors(mine_anchors(forget, retain, most=10, ratio=2.0, titles=True)).find("FRIAR LAURENCE met Laurence")
    assert [match.term for match in found] == ["Friar Laurence", "Laurence"]


def test_a_file_of_terms(tmp_path):
    path = tmp_path / "terms.json"
    path.write_text(json.dumps(TERMS))
    assert load_anchors(path) == TERMS
    path.write_text("[1, 2]")
    with pytest.raises(TilthError, match="not a mapping"):
        load_anchors(path)
    with pytest.raises(TilthError, match="cannot be read"):
        load_anchors(tmp_path / "none.json")
    with pytest.raises(TilthError, match="empty"):
        Anchors({"Harry": " "})
