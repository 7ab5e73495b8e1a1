"""Probes of pictures: floors, few labels, chance for random labels, and the encoder left as it was."""

import numpy as np
import pytest
import torch

from tests.images import digits
from tilth.adapt.adapt import adapt
from tilth.adapt.classifier import Classifier
from tilth.backbones.classifier import PictureClassifier
from tilth.backbones.dense import with_dense_head
from tilth.backbones.fingerprint import fingerprint
from tilth.backbones.folder import TextModel, load, save
from tilth.backbones.patches import Patches
from tilth.backbones.picture_features import picture_features
from tilth.batches.images.pictures import Pictures
from tilth.context import Context, exhibits
from tilth.contracts import Sample, use
from tilth.errors import TilthError
from tilth.evaluate.image_probe import ImageProbe, few
from tilth.evaluate.label_curve import LabelCurve
from tilth.evaluate.representation import effective_rank, signs_of_collapse, uniformity
from tilth.stages.classifier import ClassifierOf
from tilth.training.settings import Budget, Training

GREY = use("batches", "pictures", channels=1)


@pytest.fixture
def world(tmp_path):
    rows = digits(tmp_path)
    context = Context(
        tmp_path / "stage", corpora={"train": rows.filter("draw < 0.6"), "test": rows.filter("draw >= 0.6"), "all": rows}
    )
    context.folder.mkdir()
    torch.manual_seed(0)
    model = Patches(width=32, depth=2, heads=2, patch=2, class_token=True).build(Sample(1, (8, 8), (0.3,), (0.3,)))
    save(model, None, tmp_path / "model", {})
    return tmp_path / "model", context


def test_probes_read_a_random_encoder_and_pixels_better_than_chance_and_leave_it(world):
    model, context = world
    before = fingerprint(load(model).model)
    scores = ImageProbe(train="train", test="test", neighbours=5, batches=GREY)(model, context).metrics
    assert scores["linear_accuracy"] > 0.5 and scores["raw_knn_accuracy"] > 0.7 and scores["knn_accuracy"] > 0.3
    assert 1 < scores["effective_rank"] <= 32 and scores["uniformity"] < 0
    assert fingerprint(load(model).model) == before


def test_nearest_neighbour_on_the_training_rows_is_always_right(world):
    model, context = world
    scores = ImageProbe(train="all", test="all", neighbours=1, batches=GREY)(model, context).metrics
    assert scores["knn_accuracy"] == scores["raw_knn_accuracy"] == 1.0


def test_labels_that_say_nothing_give_chance(world):
    model, context = world
    scores = ImageProbe(train="train", test="test", label="part", neighbours=5, batches=GREY)(model, context).metrics
    assert abs(scores["linear_accuracy"] - 0.75) < 0.15  # three quarters are 'train'


def looked_at(world, layer):
    """The encoder, rows, and what the encoder itself gives of the first seven."""
    model, context = world
    network = load(model).model
    rows = Pictures(channels=1).build(context.corpus("test"), None, context)
    with torch.no_grad():
        return network, rows, network(torch.from_numpy(np.array(rows.pixels[:7])).float() / 255, layers=(layer,))


def test_layers_and_pools(world):
    network, rows, features = looked_at(world, 1)
    some = picture_features(network, rows, pool="class")[:7]
    assert np.allclose(some, features.summary.numpy(), atol=1e-6)
    assert np.allclose(picture_features(network, rows, layer=1)[:7], features.layers[0][:, 1:].mean(1).numpy(), atol=1e-6)
    assert np.allclose(picture_features(network, rows, layer=1, pool="class")[:7], features.layers[0][:, 0].numpy(), atol=1e-6)
    assert np.array_equal(picture_features(network, rows, batch_size=3), picture_features(network, rows)) or np.allclose(
        picture_features(network, rows, batch_size=3), picture_features(network, rows), atol=1e-6
    )


def test_tokens_in_a_row_keep_what_lies_where(world):
    network, rows, features = looked_at(world, 2)
    assert np.allclose(picture_features(network, rows, pool="tokens")[:7], features.tokens.flatten(1).numpy(), atol=1e-6)
    inner = picture_features(network, rows, layer=2, pool="tokens")[:7]
    assert np.allclose(inner, features.layers[0][:, 1:].flatten(1).numpy(), atol=1e-6)


def test_under_a_head_for_every_pixel_is_the_encoder_that_is_asked_and_classifies(world):
    model, context = world
    network = load(model).model
    rows = Pictures(channels=1).build(context.corpus("test"), None, context)
    dense = with_dense_head(network, 3, "linear")
    assert np.array_equal(picture_features(dense, rows), picture_features(network, rows))
    save(dense, None, context.folder / "dense", {})
    ClassifierOf(model=str(context.folder / "dense"), classes=10).run(context)
    headed = load(context.folder / "model").model
    assert isinstance(headed, PictureClassifier) and fingerprint(headed.encoder) == fingerprint(network)


def test_of_several_layers_the_one_that_tells_most_of_labelled_rows_is_probed(world):
    model, context = world
    network = load(model).model
    with torch.no_grad():
        for name, weight in network.blocks[1].named_parameters():
            weight.fill_(
                1e9 if name.startswith("mlp") and name.endswith("bias") else 0
            )  # rounding drowns what the first block said
    save(network, None, model, {})
    probe = {"train": "train", "test": "test", "neighbours": 5, "batches": GREY, "standardise": True}
    chosen = ImageProbe(**probe, layer=[2, 1])(model, context).metrics
    assert chosen["layer"] == 1
    assert chosen == ImageProbe(**probe, layer=1)(model, context).metrics | {"layer": 1.0}
    assert chosen["knn_accuracy"] > ImageProbe(**probe, layer=2)(model, context).metrics["knn_accuracy"]


def test_the_linear_probe_can_be_left_out(world):
    model, context = world
    probe = {"train": "train", "test": "test", "neighbours": 5, "batches": GREY}
    both = ImageProbe(**probe)(model, context).metrics
    assert ImageProbe(**probe, linear=False)(model, context).metrics == {k: v for k, v in both.items() if k != "linear_accuracy"}


def test_too_few_labelled_rows_choose_no_layer(world):
    model, context = world
    context.corpora["one"] = context.corpus("all").filter("id = 'digit-0000'")
    with pytest.raises(TilthError, match="too few to choose a layer"):
        ImageProbe(train="one", test="one", neighbours=1, batches=GREY, layer=[1, 2])(model, context)


def test_standardised_pixels_are_another_floor(world):
    model, context = world
    plainly, scaled = (
        ImageProbe(train="train", test="test", neighbours=3, per_class=5, batches=GREY, standardise=wanted)(
            model, context
        ).metrics
        for wanted in (False, True)
    )
    assert plainly["raw_knn_accuracy"] != scaled["raw_knn_accuracy"]
    assert plainly["linear_accuracy"] == scaled["linear_accuracy"]


def test_few_labels_are_as_many_of_each_class_and_another_seed_takes_others():
    labels = np.repeat(np.arange(5), 20)
    chosen = few(labels, 4, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4] * 5 and len(set(chosen.tolist())) == 20
    assert chosen.tolist() != few(labels, 4, seed=1).tolist() and chosen.tolist() == few(labels, 4, seed=0).tolist()
    with pytest.raises(TilthError, match="fewer than 21"):
        few(labels, 21, seed=0)


def test_collapse_is_seen():
    spread = np.random.default_rng(0).normal(size=(500, 16))
    assert effective_rank(spread) == pytest.approx(16, rel=0.02) and effective_rank(np.ones((50, 16))) == 1
    assert effective_rank(spread[:, :1] @ np.ones((1, 16))) == pytest.approx(1, abs=1e-6)
    assert uniformity(np.ones((50, 16))) == 0 and uniformity(spread) == pytest.approx(-3.5, abs=0.3)


def test_a_single_row_tells_no_sign_of_collapse(world):
    model, context = world
    context.corpora["one"] = context.corpus("all").filter("id = 'digit-0000'")
    scores = ImageProbe(train="train", test="one", neighbours=1, batches=GREY)(model, context).metrics
    assert set(scores) == {"knn_accuracy", "linear_accuracy", "raw_knn_accuracy"}
    assert signs_of_collapse(np.ones((1, 4))) == {} and signs_of_collapse(np.ones((2, 4)))["uniformity"] == 0


def test_adapting_an_encoder_to_labelled_pictures_gives_a_classifier_that_is_saved_whole(world, tmp_path):
    model, context = world
    adapted = adapt(
        load(model), context.corpus("train"), test=context.corpus("test"), method=use("adapt", "linear_probe"), batches=GREY,
        context=Context(tmp_path / "adapted", 0),
    )  # fmt: skip
    assert adapted.metrics["accuracy"] > 0.5
    again = Classifier.load(adapted.folder)
    rows = Pictures(channels=1).build(context.corpus("test"), None, context)
    truth = context.corpus("test").table(["label"])["label"].to_pylist()
    said = again.predict(rows)
    assert np.mean([int(a) == b for a, b in zip(said, truth)]) == pytest.approx(adapted.metrics["accuracy"])
    assert isinstance(again.text_model, TextModel) and again.text_model.tokenizer is None


def test_a_corpus_without_pictures_is_told(world, tmp_path):
    model, context = world
    context.corpora["none"] = context.corpus("all").filter("label < 0")
    with pytest.raises(TilthError, match="empty"):
        ImageProbe(train="none", test="test", batches=GREY)(model, context)


@pytest.mark.parametrize("name", ["fine_tune", "attentive_probe"])
def test_training_on_labelled_pictures_gives_one_classifier_to_load_and_ask(world, tmp_path, name):
    model, context = world
    training = Training(lr=1e-2 if name == "attentive_probe" else 3e-3, batch_size=32, compile=False)
    adapted = adapt(
        load(model), context.corpus("train"), test=context.corpus("test"), method=use("adapt", name, views=use("views", "none")),
        training=training, budget=Budget(steps=250), batches=GREY, context=Context(tmp_path / "adapted", 0),
    )  # fmt: skip
    assert adapted.metrics["accuracy"] > 0.5
    again = Classifier.load(adapted.folder)
    rows = Pictures(channels=1).build(context.corpus("test"), None, context)
    truth = context.corpus("test").table(["label"])["label"].to_pylist()
    assert np.mean([int(a) == b for a, b in zip(again.predict(rows), truth)]) == pytest.approx(adapted.metrics["accuracy"])
    frozen = fingerprint(again.text_model.model.encoder) == fingerprint(load(model).model)
    assert frozen == (name == "attentive_probe")


def test_more_labels_help_and_the_curve_is_shown(world):
    model, context = world
    scores = LabelCurve(train="train", test="test", per_class=[1, 4, 10], batches=GREY)(model, context).metrics
    assert 0.1 < scores["accuracy_1"] < scores["accuracy_4"] < scores["accuracy_10"]
    [shown] = exhibits(context.folder)
    assert [x for x, _ in shown["series"]["linear probe"]] == [1, 4, 10]
