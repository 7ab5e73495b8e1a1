"""A model adapted to tell two kinds of sentences apart: by a probe, by neighbours, by fine-tuning."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tilth.adapt.adapt import Reading, adapt
from tilth.adapt.classifier import Classifier
from tilth.adapt.fine_tune import FineTune, classifier
from tilth.backbones.folder import TextModel
from tilth.context import Context
from tilth.contracts import Batch, use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.training.settings import Budget, Training

ANIMALS, TOOLS = (
    ["cat", "dog", "cow", "hen", "fox", "owl", "ape", "bee"],
    ["saw", "axe", "pen", "hoe", "rod", "jug", "fan", "key"],
)
TRAINING = Training(lr=3e-3, batch_size=8, compile=False)


def sentences(count, seed):
    """Texts about animals and tools, and which of the two."""
    generator = np.random.default_rng(seed)
    kinds = generator.integers(0, 2, count)
    words = [generator.choice(TOOLS if kind else ANIMALS, 2) for kind in kinds]
    return [f"the {first} and the {second} are here" for first, second in words], ["tool" if kind else "animal" for kind in kinds]


def corpus(folder, texts, labels, name="rows", label="label"):
    table = pa.table({"id": [str(i) for i in range(len(texts))], "text": texts, label: labels})
    return Corpus.write(folder / f"{name}.lance", table.to_batches(), table.schema)


@pytest.fixture(scope="module")
def tokenizer():
    return use("tokenizer", "word").build().train(iter(sentences(64, 0)[0]))


def text_model(tokenizer, backbone="causal_lm"):
    torch.manual_seed(0)
    return TextModel(
        use("backbone", backbone, width=32, depth=1, heads=2).build().build(tokenizer).eval(),
        tokenizer,
        {"history": [{"data": "x"}]},
    )


def run(tokenizer, folder, method, *, backbone="causal_lm", budget=Budget(steps=40), texts=None, labels=None, **more):
    folder.mkdir(exist_ok=True)
    if texts is None:
        texts, labels = sentences(96, 1)
    context = Context(folder, shared=folder / "shared")
    return adapt(
        text_model(tokenizer, backbone), corpus(folder, texts, labels, "train"),
        test=corpus(folder, *sentences(64, 2), "test"), method=method, training=TRAINING, budget=budget, context=context, **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["linear_probe", "knn", "fine_tune"])
@pytest.mark.parametrize("backbone", ["causal_lm", "masked_lm"])
def test_every_method_learns_and_what_it_writes_says_the_same(tokenizer, tmp_path, name, backbone):
    adapted = run(tokenizer, tmp_path / "run", use("adapt", name), backbone=backbone)
    assert adapted.metrics["accuracy"] > 0.9 and adapted.metrics["macro_f1"] > 0.9
    assert adapted.folder == tmp_path / "run" / "model"
    again = Classifier.load(adapted.folder)
    texts, truth = sentences(64, 2)
    assert again.classes == ["animal", "tool"]
    assert np.mean(np.array(again.predict(texts)) == truth) == adapted.metrics["accuracy"]
    np.testing.assert_allclose(again.probabilities(texts).sum(1), 1, rtol=1e-5)
    assert [*again.text_model.about["history"][0].values()] == ["x"] and again.text_model.about["history"][1]["label"] == "label"


def test_a_fine_tuned_folder_is_an_ordinary_classifier(tokenizer, tmp_path):
    adapted = run(tokenizer, tmp_path / "run", use("adapt", "fine_tune"), budget=Budget(steps=1))
    model = AutoModelForSequenceClassification.from_pretrained(adapted.folder)
    assert model.config.id2label == {0: "animal", 1: "tool"}


def test_probing_leaves_the_model_as_it_was(tokenizer, tmp_path):
    adapted = run(tokenizer, tmp_path / "run", use("adapt", "linear_probe"))
    before, after = text_model(tokenizer).model.state_dict(), Classifier.load(adapted.folder).text_model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_features_are_computed_once(tokenizer, tmp_path, monkeypatch):
    model, texts = text_model(tokenizer), sentences(8, 3)[0]
    rows, context = corpus(tmp_path, texts, ["a"] * 8), Context(tmp_path)
    read = Reading(model, None, None, context)
    first = read.features(rows, read(rows))
    monkeypatch.setattr("tilth.adapt.adapt.features_of", None)  # calling it again would fail
    np.testing.assert_array_equal(read.features(rows, texts), first)


@pytest.mark.parametrize("backbone", ["causal_lm", "masked_lm", "encoder_decoder"])
def test_a_classifier_starts_from_the_language_models_weights(tokenizer, backbone):
    old = text_model(tokenizer, backbone)
    new = classifier(old, ["a", "b", "c"])
    assert new.config.num_labels == 3 and old.model.config.num_labels == 2
    mine, theirs = new.base_model.state_dict(), old.model.base_model.state_dict()
    shared = [name for name in mine if "pooler" not in name]
    assert shared and all(torch.equal(mine[name], theirs[name]) for name in shared)
    mine[shared[0]].add_(1)
    assert not torch.equal(mine[shared[0]], theirs[shared[0]])


def test_the_fine_tuning_loss_is_cross_entropy(tokenizer):
    model = classifier(text_model(tokenizer), ["a", "b", "c"]).eval()
    ids, labels = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([2, 0])
    batch = Batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    probabilities = model(ids).logits.softmax(-1)
    loss = FineTune(model)(batch)
    assert loss.total.item() == pytest.approx(-probabilities[[0, 1], labels].log().mean().item(), rel=1e-5)
    assert loss.count == 2
    smooth = FineTune(model, label_smoothing=0.3)(batch).total.item()
    assert smooth == pytest.approx((0.7 * loss.total - 0.3 * probabilities.log().mean()).item(), rel=1e-5)


def test_without_test_rows_the_training_rows_are_scored(tokenizer, tmp_path):
    texts, labels = sentences(40, 1)
    adapted = adapt(text_model(tokenizer), corpus(tmp_path, texts, labels), method=use("adapt", "knn"), context=Context(tmp_path))
    assert adapted.metrics["accuracy"] == adapted.metrics["train_accuracy"]


def test_mistakes_are_named(tokenizer, tmp_path):
    texts, labels = sentences(40, 1)
    probe = use("adapt", "linear_probe")
    with pytest.raises(TilthError, match=r"no column 'lable'(.|\n)*Did you mean 'label'"):
        run(tokenizer, tmp_path / "a", probe, texts=texts, labels=labels, label="lable")
    with pytest.raises(TilthError, match="only one class, 'animal'"):
        run(tokenizer, tmp_path / "b", probe, texts=texts, labels=["animal"] * 40)
    with pytest.raises(TilthError, match="k = 9 neighbours of n_samples = 4"):
        run(tokenizer, tmp_path / "c", use("adapt", "knn", k=9), texts=texts[:4], labels=["animal", "tool"] * 2)
    with pytest.raises(TilthError, match="a single example"):
        run(tokenizer, tmp_path / "f", use("adapt", "linear_probe", C=None), texts=texts[:4], labels=["animal"] * 3 + ["tool"])
    with pytest.raises(TilthError, match="not one of the classes"):
        run(tokenizer, tmp_path / "d", probe, texts=texts, labels=["animal", "beast"] * 20)
    with pytest.raises(TilthError, match="the label is missing"):
        run(tokenizer, tmp_path / "e", probe, texts=texts, labels=["animal", None] * 20)


def test_a_language_model_is_not_a_classifier(tokenizer, tmp_path):
    from tilth.backbones.folder import save

    model = text_model(tokenizer)
    save(model.model, tokenizer, tmp_path / "lm")
    with pytest.raises(TilthError, match="not a classifier"):
        Classifier.load(tmp_path / "lm")
