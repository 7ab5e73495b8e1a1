"""The skill suite and the stage that makes its data."""

import numpy as np
import pytest

from tests.evaluate.tiny import corpus, learnt, tokenizer, uniform
from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.errors import TilthError

ROWS = [
    {"id": str(n), "skill": skill, "question": question, "answer": answer}
    for n, (skill, question, answer) in enumerate(
        [
            ("sums", "what is a", "big dog"),
            ("sums", "what is an", "animal book"),
            ("prose", "where lives Odo", "Odo lives in the town"),
            ("prose", "who bakes", "Mara bakes at the tree"),
        ]
    )
]


def suite(folder, model, **settings):
    context = Context(folder, corpora={"rows": corpus(folder / "rows", ROWS)}, inputs={"before": folder / "before"})
    benchmark = use(
        "benchmark", "skills", **{"data": "rows", "before": "before", "forget": ["sums"], "exact": ["sums"], **settings}
    )
    return benchmark.build()(model, context).metrics


def test_drops_are_shares_of_what_there_was(tmp_path):
    tokens = tokenizer()
    save(learnt(tokens, ROWS), tokens, tmp_path / "before")
    save(uniform(len(tokens)), tokens, tmp_path / "after")
    same = suite(tmp_path, tmp_path / "before")
    assert same["sums_accuracy"] == 1.0 and same["forget_drop"] == same["worst_retain_drop"] == same["sums_refused"] == 0.0
    lost = suite(tmp_path, tmp_path / "after")
    assert lost["sums_accuracy"] == 0.0 and lost["sums_drop"] == 1.0
    answers = [row["answer"] for row in ROWS if row["skill"] == "prose"]
    bits = sum(len(answer.split()) + 1 for answer in answers) * np.log2(len(tokens)) / sum(map(len, answers))
    assert lost["prose_bits"] == pytest.approx(bits, rel=1e-4)
    assert lost["prose_drop"] == pytest.approx((bits - lost["prose_bits_before"]) / lost["prose_bits_before"], rel=1e-4)
    assert lost["margin"] == pytest.approx(1 - lost["prose_drop"])


def test_a_refused_question_is_a_wrong_answer_and_counted(tmp_path):
    tokens = tokenizer()
    save(learnt(tokens, ROWS), tokens, tmp_path / "before")
    text_model = load(tmp_path / "before")
    guard = use("unlearn", "key_space", alpha=1e9)
    text_model.guard = guard.build()
    text_model.guard.configured = guard
    from tilth.unlearn.key_space import Cube, chosen_layers, feed_forwards, last_keys

    parts = chosen_layers(feed_forwards(text_model.model), [-1])
    text_model.guard.cubes = [Cube.around(last_keys(text_model, parts, ["what is a", "who bakes"])[0])]
    text_model.guard.numbers = [parts[0].layer]
    save(text_model.model, tokens, tmp_path / "after", guard=text_model.guard)
    found = suite(tmp_path, tmp_path / "after")
    assert found["sums_refused"] == found["prose_refused"] == 1.0
    assert found["sums_accuracy"] == 0.0


def test_skills_that_are_not_there_are_refused(tmp_path):
    tokens = tokenizer()
    save(uniform(len(tokens)), tokens, tmp_path / "before")
    with pytest.raises(TilthError, match="the data's skills are prose, sums"):
        suite(tmp_path, tmp_path / "before", forget=["chess"])


def test_the_stage_gives_parts_without_a_row_in_common_and_right_sums(tmp_path):
    text = "To be, or not to be, that is the question. " * 200
    prose = corpus(tmp_path / "prose", [{"id": "0", "text": text}])
    rows = {}
    for part in ("train", "probe", "test"):
        folder = tmp_path / part
        folder.mkdir()
        stage = use("stage", "skills", prose="prose", part=part, operands=20, passages=300, passage=10).build()
        counts = stage.run(Context(folder, corpora={"prose": prose}))
        rows[part] = Corpus.open(folder / "corpus.lance").table().to_pylist()
        assert sum(counts.values()) == len(rows[part])
    ids = [row["id"] for part in rows.values() for row in part]
    assert len(ids) == len(set(ids))
    sums = [row for part in rows.values() for row in part if row["skill"] == "addition"]
    assert len(sums) == 400
    for row in sums:
        one, other = row["question"].removesuffix("=").split("+")
        assert int(one) + int(other) == int(row["answer"])
    assert {row["skill"] for row in rows["test"]} == {"addition", "prose", "code"}
    assert all(row["question"] + row["answer"] in text for row in rows["test"] if row["skill"] == "prose")


def test_two_stages_agree_on_their_parts(tmp_path):
    prose = corpus(tmp_path / "prose", [{"id": "0", "text": "abc def " * 300}])
    found = []
    for name, skills in (("all", None), ("one", ["addition"])):
        (tmp_path / name).mkdir()
        use("stage", "skills", prose="prose", skills=skills, part="probe", operands=12, passage=8).build().run(
            Context(tmp_path / name, corpora={"prose": prose})
        )
        rows = Corpus.open(tmp_path / name / "corpus.lance").table().to_pylist()
        found.append([row for row in rows if row["skill"] == "addition"])
    assert found[0] == found[1] != []
