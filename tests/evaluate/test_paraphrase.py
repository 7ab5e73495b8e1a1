import pytest

from tests.evaluate.tiny import corpus, learnt, people, tokenizer
from tilth.backbones.folder import save
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate.paraphrase import Paraphrase


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    tokens = tokenizer()
    rows = [{**row, "paraphrased_question": f"find who {row['question']}"} for row in people("Mara")]
    half = [rows[0], {**rows[1], "paraphrased_question": None}]
    both = [*people("Mara"), *({**row, "question": row["paraphrased_question"]} for row in rows)]
    models = {"knows": learnt(tokens, both, steps=120), "one_form": learnt(tokens, people("Mara"))}
    return Context(
        folder=tmp_path / "stage",
        corpora={"forget": corpus(tmp_path / "forget.lance", rows), "half": corpus(tmp_path / "half.lance", half)},
        inputs={name: save(model, tokens, tmp_path / name) for name, model in models.items()},
    )


def test_every_form_is_asked_for_the_same_answer(bed):
    found = Paraphrase(forget="forget", prefixes={"shout": "big big "})(bed.model("knows"), bed).metrics
    assert found["rouge_question"] == found["rouge_paraphrased_question"] == found["worst_rouge"] == 1.0
    assert {"probability_shout", "rouge_shout"} <= found.keys()


def test_the_worst_form_is_taken_row_by_row(bed):
    scores = Paraphrase(forget="forget", prefixes={"shout": "big big "})(bed.model("one_form"), bed)
    forms = ("question", "paraphrased_question", "shout")
    rows = zip(*(scores.details[f"probability_{form}"] for form in forms), strict=True)
    assert scores.details["worst_probability"] == [max(row) for row in rows]
    assert scores.metrics["worst_probability"] >= max(scores.metrics[f"probability_{form}"] for form in forms)


def test_other_columns_and_no_prefixes(bed):
    """Answers in the place of questions are another form too; without prefixes the columns are all there is."""
    scores = Paraphrase(forget="forget", columns=("paraphrased_answer",), prefixes={})(bed.model("one_form"), bed)
    assert sorted(name for name in scores.metrics if name.startswith("rouge")) == ["rouge_paraphrased_answer", "rouge_question"]
    assert next(entry["title"] for entry in exhibits(bed.folder)) == "Other forms of the questions"


def test_a_row_without_its_other_form_is_named(bed):
    with pytest.raises(TilthError, match="'Mara-colour' has no 'paraphrased_question'"):
        Paraphrase(forget="half")(bed.model("one_form"), bed)
