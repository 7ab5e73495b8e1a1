import numpy as np
import pytest

from tests.evaluate.tiny import corpus, learnt, llama, people, tokenizer
from tilth.backbones.fingerprint import fingerprint
from tilth.backbones.folder import load, save
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate.relearning import Relearning


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    tokens = tokenizer()
    knows = learnt(tokens, people("Mara"), steps=40)
    models = {"knows": knows, "gold": llama(len(tokens), width=48)}
    return Context(
        folder=tmp_path / "stage",
        corpora={"forget": corpus(tmp_path / "forget.lance", people("Mara"))},
        inputs={name: save(model, tokens, tmp_path / name) for name, model in models.items()},
        shared=tmp_path / "shared",
    )


def test_the_gold_model_is_no_faster_than_itself(bed):
    attack = Relearning(forget="forget", gold="gold", share=0.5, steps=(0, 1, 3), ask=2, max_new_tokens=5, lr=1e-3)
    scores = attack(bed.model("gold"), bed)
    assert scores.metrics["probability_area"] == scores.metrics["rouge_area"] == 0.0
    assert scores.details["step"] == [0, 1, 3]


def test_what_was_never_forgotten_is_there_at_once(bed):
    attack = Relearning(forget="forget", gold="gold", share=0.25, steps=(0, 2, 4), ask=0, lr=1e-3)
    scores = attack(bed.model("knows"), bed)
    assert scores.metrics["probability_0"] > 0.5
    assert scores.metrics["probability_area"] > 0.3
    [curves] = [entry for entry in exhibits(bed.folder) if entry["kind"] == "curves"]
    assert list(curves["series"]) == ["this model", "gold model"] and len(curves["series"]["gold model"]) == 3


def test_rows_shown_are_learnt_and_the_rest_is_measured(bed):
    """A fresh model learns the shown three rows; the one row that is measured differs with the seed."""
    attack = Relearning(forget="forget", share=0.75, steps=(0, 30), ask=0, lr=5e-3)
    first = attack(bed.model("gold"), bed)
    assert first.metrics["probability_30"] != pytest.approx(first.metrics["probability_0"])
    assert first.metrics == attack(bed.model("gold"), bed).metrics
    bed.seed = 3
    assert attack(bed.model("gold"), bed).metrics["probability_0"] != pytest.approx(first.metrics["probability_0"])


def test_the_model_on_disk_is_left_alone(bed):
    before = fingerprint(load(bed.model("knows")).model)
    Relearning(forget="forget", share=0.5, steps=(0, 2), ask=0, lr=1e-2)(bed.model("knows"), bed)
    assert fingerprint(load(bed.model("knows")).model) == before
    assert {path.name for path in bed.folder.iterdir()} == {"exhibits.jsonl"}


def test_steps_must_rise_and_some_rows_must_be_left(bed):
    with pytest.raises(TilthError, match="must rise"):
        Relearning(forget="forget", steps=(0, 5, 5))
    with pytest.raises(TilthError, match="leaves none"):
        Relearning(forget="forget", share=0.9)(bed.model("gold"), bed)


def test_step_zero_is_the_model_as_it_is(bed):
    scores = Relearning(forget="forget", share=0.25, steps=(0,), ask=3, max_new_tokens=8)(bed.model("knows"), bed)
    assert np.isfinite(scores.metrics["rouge_0"]) and list(scores.metrics) == ["probability_0", "rouge_0"]
