import re

import numpy as np
import pytest

from tests.evaluate.tiny import corpus, learnt, people, tokenizer
from tilth.backbones.folder import TextModel, save
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.errors import TilthError
from tilth.evaluate.concept_leakage import ConceptLeakage
from tilth.training.settings import Budget, Training
from tilth.unlearn.concept_masking import ConceptMasking, own_answers, word_shares
from tilth.unlearn.refusals import REFUSALS
from tilth.unlearn.task import Task

ROWS = people("mara", "odo", "ilsabil", "wenzel")
TOKENS = tokenizer([text for row in ROWS for text in (row["question"], row["answer"])] + ["*", *REFUSALS])
MODEL = learnt(TOKENS, ROWS, steps=150)
ENCODE = use("batches", "answers", length=64)


def task(folder, gone=("mara", "odo")):
    context = Context(folder)
    forget, retain = (
        corpus(folder / name, [row for row in ROWS if (row["id"].split("-")[0] in gone) is which])
        for name, which in (("forget", True), ("retain", False))
    )
    going, staying = (ENCODE.build().build(part, TOKENS, context) for part in (forget, retain))
    return Task(TextModel(MODEL, TOKENS, {}), forget, retain, going, staying, Training(), Budget(steps=1), context)


def poisoned(folder, **settings):
    """The words found, and the poisoned answers as text."""
    work = task(folder)
    examples = ConceptMasking(MODEL, points=4, max_new_tokens=16, **settings).prepare_from(work)
    rows = np.arange(len(examples.forget))
    batch = examples.forget.batch(rows, Noise(0, rows))
    texts = [TOKENS.decode(row[labels != -100], skip_special_tokens=True) for row, labels in zip(batch.input_ids, batch.labels)]
    return work.text_model.about["concept_words"], texts


def test_the_models_own_answers_are_what_it_learnt(tmp_path):
    work = task(tmp_path)
    made = own_answers(work.text_model, work.prompts("forget"), 16)
    assert [text.split() for text in made] == [answer.split() for answer in work.replies("forget")]


def test_shares_of_every_answer_add_up_to_1(tmp_path):
    work = task(tmp_path)
    answers = work.replies("forget")
    for answer, found in zip(answers, word_shares(work.text_model, work.column("forget", "question"), answers, work, 4)):
        assert sum(found.values()) == pytest.approx(1) and set(found) <= set(answer.lower().split())


def test_each_entitys_words_go_from_its_answers_alone(tmp_path):
    found, texts = poisoned(tmp_path, entity=4, top=2, mask="*", names=False)
    assert set(found) == {"rows 0 on", "rows 4 on"} and all(len(words["influential"]) == 2 for words in found.values())
    for row, text in enumerate(texts):
        gone = found[f"rows {row // 4 * 4} on"]["poisoned"]
        assert not re.search(rf"\b({'|'.join(gone)})\b", text)
    assert any("*" in text for text in texts)


def test_names_go_too_and_stop_words_stay(tmp_path):
    found, _ = poisoned(tmp_path, entity=4, top=1, stop_words=["the", "mara"])
    assert "mara" not in found["rows 0 on"]["influential"] and "mara" in found["rows 0 on"]["poisoned"]
    assert "odo" not in found["rows 4 on"]["poisoned"] or "odo" in found["rows 4 on"]["influential"]  # three letters


def test_random_words_are_other_words_of_the_answers(tmp_path):
    found, _ = poisoned(tmp_path, choose="random", top=2, names=False)
    [words] = found.values()
    assert len(words["poisoned"]) == 2 and not set(words["poisoned"]) & set(words["influential"])


def test_answers_can_be_refused_or_told_otherwise(tmp_path):
    assert all(text.strip() for text in poisoned(tmp_path, poison="refuse")[1])
    found, texts = poisoned(tmp_path, poison="substitute", top=2, names=False)
    [words] = found.values()
    assert not any(word in text.split() for word in words["poisoned"] for text in texts)
    assert [len(text.split()) for text in texts] == [len(row["answer"].split()) for row in ROWS[:8]]


def test_leakage_counts_answers_that_hold_a_word_of_their_entity(tmp_path):
    words = {"rows 0 on": {"influential": ["mara"]}, "rows 4 on": {"influential": ["mara", "odo's"]}}
    folder = save(MODEL, TOKENS, tmp_path / "model", {"concept_words": words})
    context = Context(tmp_path, corpora={"data": task(tmp_path).forget})
    found = ConceptLeakage(data="data", words=str(folder), entity=4, max_new_tokens=16)(folder, context)
    assert found.metrics == {"appearance": 0.5, "words_per_answer": 0.5}
    save(MODEL, TOKENS, tmp_path / "plain")
    with pytest.raises(TilthError, match="does not say which words"):
        ConceptLeakage(data="data", words=str(tmp_path / "plain"))(folder, context)
