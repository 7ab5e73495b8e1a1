import numpy as np
import pytest

from tests.images import BATCHES, cnn, digits
from tilth.backbones.folder import save
from tilth.backbones.heads import embed_all
from tilth.batches.images.labelled import ImageRows
from tilth.context import Context
from tilth.contracts import use
from tilth.evaluate.forgetting_images import ForgettingClasses, measured
from tilth.evaluate.image_membership import attack_success_rate, loss_attack_gap, losses_of
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training


def confident(labels, by, classes=4):
    """Logits that say the label, with the margin `by`."""
    return by * np.eye(classes)[labels] + np.random.default_rng(0).normal(0, 0.1, (len(labels), classes))


def test_the_attack_succeeds_on_members_that_stand_out_and_on_nothing_else():
    labels = np.arange(200) % 4
    sure, unsure = confident(labels, 8.0), confident(labels, 2.0)
    assert attack_success_rate(sure, unsure, sure) > 0.95
    # Forgotten images that look unseen are called strangers: only the other half of the strangers is right.
    assert attack_success_rate(sure, unsure, confident(labels[:100], 2.0)) == pytest.approx(0.5, abs=0.05)


def test_the_attack_does_not_see_which_class_is_likely():
    labels = np.arange(200) % 4
    sure, unsure = confident(labels, 8.0), confident(labels, 2.0)
    assert attack_success_rate(sure, unsure, sure) == attack_success_rate(sure, unsure, sure[:, ::-1])


def test_the_loss_attack_is_blind_where_losses_are_alike():
    labels = np.arange(400) % 4
    random = np.random.default_rng(0)
    alike = [random.normal(size=(400, 4)) for _ in range(2)]
    assert loss_attack_gap(alike[0], labels, alike[1], labels) < 0.1
    assert loss_attack_gap(confident(labels, 8.0), labels, confident(labels, 0.0), labels) > 0.45


def test_losses_are_cross_entropy():
    logits, labels = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]), np.array([1, 2])
    np.testing.assert_allclose(losses_of(logits, labels), -np.log([0.25, 0.8]))


def outputs(labels, guesses):
    embeddings = np.random.default_rng(1).normal(size=(len(labels), 6)).astype(np.float32)
    return embeddings, confident(np.asarray(guesses), 5.0).astype(np.float32)


def rows(labels):
    return ImageRows(np.zeros((len(labels), 1, 2, 2), np.uint8), np.asarray(labels))


def test_classes_of_which_nothing_stays_are_scored_apart():
    remaining, forgotten, test = np.tile([1, 2, 3], 20), np.zeros(20, int), np.tile([0, 1, 2, 3], 20)
    guesses = {"remaining": remaining, "forgotten": np.full(20, 2), "test": np.where(test == 0, 2, test)}
    guesses["forgotten"][:5] = 0
    labels = {"remaining": remaining, "forgotten": forgotten, "test": test}
    found = measured(
        {name: outputs(labels[name], guesses[name]) for name in labels},
        {name: rows(values) for name, values in labels.items()},
        0,
    )
    assert (found["remaining_train"], found["forgotten_train"], found["remaining_test"], found["forgotten_test"]) == (
        1,
        0.25,
        1,
        0,
    )
    assert found["most_routed"] == 0.75


def test_where_images_of_every_class_stay_all_test_images_remain():
    labels = {"remaining": np.tile([0, 1], 40), "forgotten": np.zeros(20, int), "test": np.tile([0, 1], 20)}
    found = measured(
        {name: outputs(values, values) for name, values in labels.items()}, {name: rows(v) for name, v in labels.items()}, 0
    )
    assert "forgotten_test" not in found and "probe" not in found and found["remaining_test"] == 1


def test_a_model_compared_with_itself_has_no_gap_no_drift_and_the_svms_own_miss_rate(tmp_path):
    data, context = digits(tmp_path), Context(tmp_path)
    model = cnn()
    fit(
        use("pretrain", "classification").build(model), BATCHES.build().build(data, None, context), folder=tmp_path / "fit",
        training=Training(lr=3e-3, compile=False), budget=Budget(steps=60), seed=0,
    )  # fmt: skip
    folder = save(model, None, tmp_path / "model")
    parts = {"remaining": "label != 0 AND draw < 0.7", "forgotten": "label = 0 AND draw < 0.7", "test": "draw >= 0.7"}
    context.corpora = {name: data.filter(where) for name, where in parts.items()}
    found = ForgettingClasses(**{name: name for name in parts}, before=str(folder), gold=str(folder), batches=BATCHES)(
        folder, context
    )
    metrics = found.metrics
    assert metrics["gap"] == 0 and metrics["gap_attack_success"] == 0 and metrics["drift_forgotten"] == pytest.approx(0, abs=1e-6)
    assert metrics["svm_transfer"] == metrics["svm_miss"]
    test = BATCHES.build().build(context.corpora["test"], None, context)
    right = embed_all(model, test)[1].argmax(1) == test.labels
    assert metrics["forgotten_test"] == right[test.labels == 0].mean()
    assert len(found.details["id"]) == context.corpora["forgotten"].count()
