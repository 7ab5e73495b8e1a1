"""The same facts in several forms: how forms are made, and what the numbers say of models one can calculate."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import corpus, learnt, people, tokenizer, uniform
from tilth.backbones.folder import TextModel, load, save
from tilth.batches.text.answers import DEFAULT, encode_answers
from tilth.context import Context
from tilth.corpus.biographies import FAMOUS, FORMS, biographies
from tilth.evaluate.forms import choice, derived, given, true_false
from tilth.evaluate.ort import ORT, average_without_end, fluency, ngram_entropy, over_subjects
from tilth.evaluate.questions import score_answers
from tilth.stages.biographies import Biographies

MINE = [dict(row, subject=row["id"].split("-")[0]) for row in people("Mara", "Odo")]


def told(form):
    """Rows asked another way; the answers stay."""
    return [dict(row, form=form, id=f"{row['id']}-{form}", question=f"{form} {row['question']}") for row in MINE]


def test_rows_that_say_their_form_are_asked_in_it():
    rows = [*told("plain"), *told("gap")]
    forms = given({name: [row[name] for row in rows] for name in ("form", "question", "answer")})
    assert list(forms) == ["plain", "gap"] and forms["gap"].rows == list(range(8, 16))
    assert forms["gap"].questions[0] == f"gap {MINE[0]['question']}" and forms["gap"].answers == [r["answer"] for r in MINE]


def test_forms_are_made_of_questions_and_answers_by_rule():
    rows = {name: [row[name] for row in MINE] for name in ("id", "question", "answer", "paraphrased_answer", "perturbed_answer")}
    forms = derived(rows)
    assert set(forms) == {"question", "completion", "adversarial", "spelled", "choice", "true_false"}
    assert forms["completion"].questions[0].endswith("Complete: Mara lives") and forms["completion"].answers[0].startswith(
        "at the"
    )
    assert forms["spelled"].answers[0].split("\n")[:4] == list("Mara")
    assert set(forms["true_false"].answers) == {"True", "False"}
    assert len(set(forms["choice"].answers)) > 1
    for question, answer, row in zip(*forms["choice"], strict=True):
        options = dict(line.split(": ", 1) for line in question.split("\n")[1:-1])
        assert options[answer] == rows["paraphrased_answer"][row]
        assert set(options.values()) - {options[answer]} <= set(rows["perturbed_answer"][row])
    assert derived(rows) == forms
    assert set(derived({name: rows[name] for name in ("id", "question", "answer")})) == {
        "question",
        "completion",
        "adversarial",
        "spelled",
    }


def test_the_order_of_options_hangs_on_the_row_and_nothing_else():
    letters = [choice(f"row{n}", "q", "right", ["a", "b", "c"])[1] for n in range(400)]
    assert all(70 < letters.count(letter) < 130 for letter in "ABCD")
    assert 150 < sum(true_false(f"row{n}", "q", "r", "w")[1] == "True" for n in range(400)) < 250
    assert choice("row1", "q", "right", ["a", "b", "c"]) == choice("row1", "other", "right", ["a", "b", "c"])[:0] + choice(
        "row1", "q", "right", ["a", "b", "c"]
    )


def test_probability_is_per_token_and_without_the_end():
    words = tokenizer()
    text_model = TextModel(learnt(words, MINE, steps=5), words)
    questions, answers = [row["question"] for row in MINE], [row["answer"] for row in MINE]
    encoded, found = score_answers(text_model, questions, answers, DEFAULT, Context(None))
    average = average_without_end(encoded, found, words.eos_token_id)
    ids = encode_answers(questions[:1], answers[:1], words)
    with torch.no_grad():
        logits = text_model.model(torch.tensor(ids.input_ids).long()).logits.log_softmax(-1)[0]
    span = range(int(ids.prompt[0]), int(ids.size[0]) - 1)
    by_hand = -np.mean([logits[at - 1, ids.input_ids[0, at]].item() for at in span])
    assert average[0] == pytest.approx(by_hand, rel=1e-4) and average[0] != pytest.approx(found.average[0], rel=1e-3)
    # an answer cut before its end has no end to leave out
    cut = replace(encoded, size=encoded.size, input_ids=np.where(encoded.input_ids == words.eos_token_id, 5, encoded.input_ids))
    np.testing.assert_allclose(average_without_end(cut, found, words.eos_token_id), found.average)


def test_a_mean_is_over_items_and_then_over_subjects():
    assert over_subjects(np.array([1.0, 0.0, 0.0, 1.0]), ["a", "b", "b", "b"]) == pytest.approx((1 + 1 / 3) / 2)


def test_fluency_is_the_weighted_entropy_of_ngrams():
    assert ngram_entropy(["a", "b", "a", "b", "a"], 2) == pytest.approx(1.0)  # ab, ba, ab, ba
    assert ngram_entropy(["a", "a", "a", "a"], 3) == 0.0
    distinct = " ".join(chr(97 + n) for n in range(9))
    assert fluency(distinct) == pytest.approx((2 / 3 * math.log2(8) + 4 / 3 * math.log2(7)) / 2)
    assert fluency("word") == 0.0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that knows both forms of both people, and one that knows only the second form of Mara."""
    folder = tmp_path_factory.mktemp("ort")
    words = tokenizer(["plain gap"])
    rows = [*told("plain"), *told("gap")]
    shallow = [row for row in rows if row["subject"] == "Odo" or row["form"] == "gap"]
    unasked = [dict(row, answer="who who") for row in rows if row not in shallow]
    save(learnt(words, rows, steps=60), words, folder / "before")
    save(learnt(words, [*shallow, *unasked], steps=60), words, folder / "after")
    save(uniform(len(words)), words, folder / "uniform")
    sets = {
        "forget": corpus(folder / "forget.lance", [row for row in rows if row["subject"] == "Mara"]),
        "neighbours": corpus(folder / "neighbours.lance", [row for row in rows if row["subject"] == "Odo"]),
    }
    return folder, sets, len(words)


def run(models, name, **settings):
    folder, sets, _ = models
    out = folder / f"out-{name}"
    out.mkdir(exist_ok=True)
    settings = {"forget": "forget", "neighbours": "neighbours", "generated": 0, "trained": ["plain"], **settings}
    context = Context(out, corpora=sets, inputs={"before": folder / "before"}, shared=folder / "shared")
    return ORT(**settings)(folder / name, context)


def test_a_model_that_forgot_one_form_shows_a_gap(models):
    found = run(models, "after", before="before").metrics
    assert found["forget_gap"] > 0.8 > 0.3 > found["forget_plain"]
    assert found["form_gap"] == found["form_gap_highest"] == pytest.approx(found["drop_plain"] - found["drop_gap"])
    assert found["form_gap"] > 0.5 and found["forget_highest"] == found["forget_gap"]
    assert abs(found["neighbours_loss"]) < 0.1 and found["neighbours_loss_highest"] >= found["neighbours_loss"]


def test_an_unchanged_model_shows_none(models):
    scores = run(models, "before", before="before", generated=4)
    found = scores.metrics
    assert all(found[name] == 0 for name in ("drop_plain", "drop_gap", "form_gap", "form_gap_highest", "neighbours_loss"))
    assert found["forget_plain"] > 0.8 and found["rouge"] > 0.8 and found["fluency"] > 0
    assert set(scores.details["set"]) == {"forget", "neighbours"} and len(scores.details["id"]) == 16
    exhibits = (models[0] / "out-before" / "exhibits.jsonl").read_text()
    assert "The same facts in several forms" in exhibits and "plain (trained on)" in exhibits


def test_under_a_uniform_model_every_answer_is_one_in_the_vocabulary(models):
    found = run(models, "uniform").metrics
    assert found["forget_plain"] == found["neighbours_gap"] == pytest.approx(1 / models[2], rel=1e-4)
    assert "drop_plain" not in found


def test_rows_without_forms_or_subjects_are_asked_in_forms_made_by_rule(models):
    folder, _, _ = models
    plain = corpus(folder / "plain.lance", people("Mara"))
    out = folder / "out-plain"
    out.mkdir()
    found = ORT(forget="forget", generated=0)(folder / "before", Context(out, corpora={"forget": plain})).metrics
    assert {"forget_question", "forget_choice", "forget_true_false", "forget_spelled", "forget_completion"} <= set(found)
    assert load(folder / "before").guard is None


def test_neighbours_of_the_same_last_name_are_counted_apart(models):
    folder, _, _ = models
    rows = told("plain")
    forgotten = corpus(folder / "namesake-f.lance", [dict(row, subject="Mara Quill") for row in rows[:4]])
    others = [dict(row, subject="Odo Quill" if n < 2 else "Odo Brandt") for n, row in enumerate(rows[4:])]
    out = folder / "out-namesakes"
    out.mkdir()
    context = Context(out, corpora={"forget": forgotten, "neighbours": corpus(folder / "namesake-n.lance", others)})
    scores = ORT(forget="forget", neighbours="neighbours", generated=0)(folder / "after", context)
    shared = [p for p, s in zip(scores.details["probability"], scores.details["subject"], strict=True) if s == "Odo Quill"]
    assert scores.metrics["namesakes_probability"] == pytest.approx(np.mean(shared))


def test_biographies_ask_every_fact_in_every_form(tmp_path):
    rows = list(biographies(50, seed=3))
    assert len(rows) == 50 * 5 * 4 and len({row["id"] for row in rows}) == 1000
    names = {row["subject"] for row in rows}
    assert len(names) == 50 and FAMOUS in names
    assert {row["subject"] for row in rows if row["part"] == "forget"} == {rows[0]["subject"]} != {FAMOUS}
    lasts = [name.split()[1] for name in names]
    assert all(lasts.count(last) == 2 for last in lasts)
    for row in rows:
        assert row["subject"] in row["question"] and (row["answer"] in row["question"]) == (row["form"] == "choice")
    for at in range(0, 1000, 4):
        assert tuple(row["form"] for row in rows[at : at + 4]) == FORMS and len({row["answer"] for row in rows[at : at + 4]}) == 1
    facts = {name: [row["answer"] for row in rows if row["subject"] == name] for name in (rows[0]["subject"], FAMOUS)}
    assert all(one != other for one, other in zip(*facts.values(), strict=True))
    assert list(biographies(50, seed=3)) == rows != list(biographies(50, seed=4))
    assert Biographies(part="forget", forms=["cloze"]).run(Context(tmp_path, seed=3)) == {"rows": 5.0}
