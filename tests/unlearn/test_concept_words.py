import pytest

from tilth.unlearn.concept_words import NO_WORD, WORD, entity_names, masked, merged, ranked, shares


def test_merging_keeps_the_total_and_joins_pieces():
    text = " Ann-Lee's novels, twice."
    spans = [(0, 3), (3, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 17), (17, 18), (18, 24), (24, 25)]
    scores = [1.0, 0.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, -3.0, 0.25]
    found = merged(text, spans, scores)
    assert sum(found.values()) == pytest.approx(sum(scores))
    assert (
        found["ann"] == 1.5
        and found["novels"] == 16 + 32
        and found[NO_WORD] == 8 + 64 + 0.25
        and found["twice"] == -3
        and found["lee"] == 2 + 4
    )


def test_one_word_in_several_places_is_one_word():
    assert merged("Ann saw ann", [(0, 3), (4, 7), (8, 11)], [1.0, 2.0, 4.0]) == {"ann": 5.0, "saw": 2.0}


def test_a_possessive_belongs_to_no_word_and_a_contraction_is_one():
    assert WORD.findall("Park's don't O’Hara’s") == ["Park", "don't", "O’Hara"]


def test_shares_are_of_what_speaks_for_the_answer_and_add_up_to_1():
    found = shares({"ann": 3.0, "the": 1.0, "not": -5.0, NO_WORD: 9.0})
    assert found == {"ann": 0.75, "the": 0.25} and shares({"not": -1.0}) == {}


def test_words_are_ranked_by_what_they_add_up_to_over_answers():
    answers = [{"ann": 0.9, "the": 0.1}, {"novel": 0.6, "the": 0.4}, {"the": 1.0}]
    assert ranked(answers, {"the"}) == ["ann", "novel"] and ranked(answers, ())[0] == "the"


def test_masks_keep_word_boundaries_take_the_longest_and_ignore_case():
    assert masked("Ann, annual ANN and Ann Lee.", ["ann", "ann lee"], "***") == "***, annual *** and ***."
    assert masked("a.b axb", ["a.b"], r"\1") == r"\1 axb" and masked("as it was", [], "***") == "as it was"


def test_entities_are_named_or_counted():
    assert entity_names(3, None, ["x", 1, "x"]) == ["x", "1", "x"]
    assert entity_names(5, 2, None) == ["rows 0 on", "rows 0 on", "rows 2 on", "rows 2 on", "rows 4 on"]
    assert set(entity_names(4, None, None)) == {"all rows"}
