import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests.evaluate.tiny import corpus, llama, tokenizer
from tilth.adapt.fine_tune import classifier
from tilth.backbones.folder import TextModel, save
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate.classification import Classification

ROWS = [
    {"id": str(number), "text": text, "label": label}
    for number, (text, label) in enumerate(
        [("the cat", "animal"), ("a dog plays", "animal"), ("red", "colour"), ("big green tree", "colour"), ("blue", "colour")]
    )
]


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    tokens = tokenizer()
    model = classifier(TextModel(llama(len(tokens)), tokens, {}), ["animal", "colour", "place"])
    folder = save(model, tokens, tmp_path / "model")
    save(llama(len(tokens)), tokens, tmp_path / "causal")
    rows = corpus(tmp_path / "rows.lance", ROWS)
    odd = corpus(tmp_path / "odd.lance", [{**ROWS[0], "label": "sound"}])
    return Context(
        folder=tmp_path / "stage", corpora={"rows": rows, "odd": odd}, inputs={"model": folder, "causal": tmp_path / "causal"}
    )


def test_accuracy_and_macro_f1_over_the_classes_there_are(bed):
    scores = Classification(data="rows")(bed.model("model"), bed)
    truth = [row["label"] for row in ROWS]
    guess = scores.details["predicted"]
    assert scores.metrics["accuracy"] == pytest.approx(np.mean([t == g for t, g in zip(truth, guess, strict=True)]))
    assert scores.metrics["macro_f1"] == pytest.approx(
        f1_score(truth, guess, labels=["animal", "colour"], average="macro", zero_division=0)
    )
    [table] = exhibits(bed.folder)
    assert [row[:2] for row in table["rows"]] == [["animal", 2], ["colour", 3]]


def test_unknown_labels_and_models_that_do_not_classify_are_refused(bed):
    with pytest.raises(TilthError, match="sound"):
        Classification(data="odd")(bed.model("model"), bed)
    with pytest.raises(TilthError, match="not a classifier"):
        Classification(data="rows")(bed.model("causal"), bed)
