import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.images import digits
from tilth.backbones.folder import load
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.stages.digits import Digits
from tilth.stages.pretrain import Pretrain
from tilth.stages.split import Split
from tilth.training.settings import Budget, Training


def test_all_digits_are_there_with_a_share_for_testing_that_does_not_hang_on_the_class(tmp_path):
    assert Digits(test=0.25).run(Context(tmp_path)) == {"rows": 1797.0}
    table = Corpus.open(tmp_path / "corpus.lance").table(["label", "part", "draw"])
    labels, test = np.array(table["label"]), np.array(table["part"]) == "test"
    assert (labels == load_digits().target).all() and 0.22 < test.mean() < 0.28
    assert all(0.1 < test[labels == label].mean() < 0.4 for label in range(10))
    assert abs(np.corrcoef(np.array(table["draw"]), test)[0, 1]) < 0.1


def test_a_part_can_be_chosen_by_a_predicate(tmp_path):
    rows = digits(tmp_path / "data")
    context = Context(tmp_path, corpora={"digits": rows})
    some = Split(data="digits", where="label = 3").run(context)["rows"]
    assert some == rows.filter("label = 3").count() and some < rows.count()
    Split(data="digits", where="label = 3", stop=0.5).run(context)
    assert set(Corpus.open(tmp_path / "corpus.lance").table(["label"])["label"].to_pylist()) == {3}


def test_a_classifier_of_images_is_trained_from_nothing_without_a_tokeniser(tmp_path):
    context = Context(tmp_path, corpora={"digits": digits(tmp_path / "data")})
    batches, backbone = use("batches", "images", channels=1), use("backbone", "image_cnn", classes=10, size=8, width=32)
    training = Training(lr=3e-3, batch_size=32, compile=False)
    metrics = Pretrain(
        data="digits", budget=Budget(epochs=15), objective=use("pretrain", "classification"), batches=batches, backbone=backbone,
        training=training,
    ).run(context)  # fmt: skip
    assert metrics["loss"] < 0.5
    made = load(tmp_path / "model")
    assert made.tokenizer is None and made.about["history"][0]["data"] == context.corpora["digits"].fingerprint
    with pytest.raises(TilthError, match="needs 'backbone' and 'tokenizer'"):
        Pretrain(data="digits", budget=Budget(steps=1), backbone=use("backbone", "causal_lm"))
