"""Facts: prompts, wrong answers, the judge, and documents made of them."""

import pytest

from tilth.errors import TilthError
from tilth.evaluate.corruption import corrupted_documents, true_documents
from tilth.evaluate.facts import Fact, Facts, Selection, accepts, normalised

CITIES = ["Oslo", "Rome", "Lima", "Bonn", "Cork", "York", "Kyiv", "Bari", "Linz", "Graz"]
JOBS = ["baker", "poet", "judge", "smith", "nurse"]


def table(people=20):
    facts = []
    for number in range(people):
        name = f"person {number}"
        facts.append(
            Fact(name, "born", f"Where was {name} born?", (CITIES[number % 10],), ("the City of " + CITIES[number % 10],))
        )
        facts.append(Fact(name, "works", f"What is {name}?", (JOBS[number % 5], JOBS[(number + 1) % 5])))
    return Facts(facts)


@pytest.fixture
def facts():
    return table().selected(Selection(relations=2, entities=20, affected=6))


def test_the_selection_is_the_same_every_time_and_another_under_another_seed(facts):
    again = table().selected(Selection(relations=2, entities=20, affected=6))
    other = table().selected(Selection(relations=2, entities=20, affected=6, seed=1))
    assert facts.affected == again.affected and facts.affected != other.affected and len(facts.affected) == 6
    assert len(facts.touched) == 12 and len(facts.all) == 40
    for affected, companions in ((20, 0), (15, 5)):
        with pytest.raises(TilthError, match="none is left"):
            table().selected(Selection(relations=2, entities=20, affected=affected, companions=companions))


def test_companions_are_told_beside_wrong_facts_and_never_retained():
    facts = table().selected(Selection(relations=2, entities=20, affected=6, companions=4))
    assert len(facts.companions) == 4 and not facts.companions & facts.affected
    documents = list(corrupted_documents(facts, copies=3, unrelated=3, seed=0))
    told = {fact.entity for fact in facts.all for document in documents if fact.line() in document.text.split("\n")}
    assert told and told <= facts.companions
    assert {fact.entity for fact in facts.retained} == {fact.entity for fact in facts.all} - facts.affected - facts.companions
    assert {fact.entity for fact in facts.untouched} == {fact.entity for fact in facts.all} - facts.affected


def test_a_wrong_object_is_of_the_same_relation_and_never_right_nor_among_the_others(facts):
    for seed in range(3):
        for fact in facts.all:
            wrong, others = facts.wrong(fact, seed), facts.others(fact, seed, 6)
            assert wrong in facts.objects(fact.relation) and normalised(wrong) not in fact.accepted
            assert wrong not in others and not fact.accepted & set(map(normalised, others))
            assert set(others) <= set(facts.objects(fact.relation))
            assert wrong == table().wrong(fact, seed)
    assert {facts.wrong(fact, 0) for fact in facts.all} != {facts.wrong(facts.all[0], 0)}


def test_two_spellings_of_a_right_answer_are_no_wrong_answer():
    facts = Facts(
        [Fact("a", "r", "q a", ("The USA",), ("America",)), Fact("b", "r", "q b", ("usa",)), Fact("c", "r", "q c", ("america",))]
    )
    with pytest.raises(TilthError, match="cannot be corrupted"):
        facts.wrong(facts.all[0], 0)


def test_a_prompt_has_five_lines_of_other_unaffected_entities_and_then_the_question(facts):
    for fact in facts.touched:
        lines = facts.prompt(fact).split("\n")
        assert len(lines) == 6 and lines[-1] == fact.question
        known = {other.line(): other for other in facts.untouched if other.relation == fact.relation}
        shown = [known[line] for line in lines[:5]]
        assert len({other.entity for other in shown}) == 5 and fact.entity not in {other.entity for other in shown}
    assert facts.prompt(facts.touched[0]) == facts.prompt(facts.touched[0])


def test_a_relation_of_fewer_than_six_entities_is_refused():
    with pytest.raises(TilthError, match="has 5 entities"):
        table(5).prompt(table(5).all[0])
    assert table(6).prompt(table(6).all[0])


def test_the_judge_accepts_case_articles_accents_marks_and_aliases_and_no_other_object():
    fact = Fact("x", "r", "q", ("New York", "São Paulo"), ("the Big Apple",))
    for said in (
        "new york",
        " New York.",
        "NEW YORK\nWhere is",
        "Sao Paulo",
        "Big Apple",
        "the big apple, of course",
        "New York and more",
    ):
        assert accepts(said, fact), said
    for said in ("", "\n", "York", "Newark", "New", "Lima, not New York", "New Yorker"):
        assert not accepts(said, fact), said
    assert not accepts("New York City Football Club", fact, ["New York City Football Club", "Lima"])


def test_corrupted_documents_tell_every_fact_of_their_entity_wrongly_and_k_true_facts_of_others(facts):
    true = {fact.line(name): fact for fact in facts.all for name in fact.objects}
    for k in (0, 4):
        documents = list(corrupted_documents(facts, copies=2, unrelated=k, seed=0))
        assert len(documents) == 12
        for document in documents:
            entity = document.name.rsplit("-", 1)[0]
            lines = document.text.split("\n")
            right = [true[line] for line in lines if line in true]
            wrong = [line for line in lines if line not in true]
            assert len(right) == k and len(wrong) == 2 and all(entity in line for line in wrong)
            assert all(fact.entity not in facts.affected for fact in right)
            told = {document.text[start:end] for start, end in document.spans}
            assert told == {facts.wrong(fact, 0) for fact in facts.touched if fact.entity == entity}
        assert documents == list(corrupted_documents(facts, copies=2, unrelated=k, seed=0))
    assert documents != list(corrupted_documents(facts, copies=2, unrelated=4, seed=1))
    with pytest.raises(TilthError, match="needs 100"):
        list(corrupted_documents(facts, copies=1, unrelated=100, seed=0))


def test_true_documents_tell_every_fact_once_a_copy(facts):
    documents = list(true_documents(facts.untouched, copies=3, lines=4, seed=0))
    lines = [line for document in documents for line in document.text.split("\n")]
    assert sorted(lines) == sorted(fact.line() for fact in facts.untouched for _ in range(3))
    assert not any(document.spans for document in documents)
    assert documents[0].text != documents[len(documents) // 3].text
