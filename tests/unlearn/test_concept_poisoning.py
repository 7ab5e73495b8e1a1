import numpy as np
import pytest
import torch

from tests.images import BATCHES, cnn, digits
from tilth.backbones.heads import extractor_parameters, head_of
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.errors import TilthError
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training
from tilth.unlearn.concept_poisoning import ConceptPoisoning, Joined
from tilth.unlearn.pairs import PairedExamples

PATCHES = ["localised", "centre", "random", "full"]


def sets(folder):
    rows = digits(folder / "data")
    return [BATCHES.build().build(rows.filter(f"label {relation} 3"), None, Context(folder)) for relation in ("=", "!=")]


def poisoned(folder, **settings):
    forget, retain = sets(folder)
    objective = ConceptPoisoning(cnn(), **settings)
    return objective, objective.prepare(PairedExamples(forget, retain), Context(folder)).forget, forget, retain


@pytest.mark.parametrize("patch", [*PATCHES, "none"])
def test_every_image_to_forget_is_poisoned_once_and_retained_ones_are_untouched(patch, tmp_path):
    _, joined, forget, retain = poisoned(tmp_path, patch=patch, donor=7)
    made = joined.poisoned
    assert len(made) == len(forget) and made.pixels.shape == forget.pixels.shape
    assert joined.retain is retain and np.array_equal(joined.retain.pixels, sets(tmp_path)[1].pixels)
    changed = (made.pixels != forget.pixels).any((1, 2, 3)).mean()
    assert changed == 0 if patch == "none" else changed > 0.5
    if patch not in ("full", "none"):
        assert (made.pixels != forget.pixels).sum((1, 2, 3)).max() <= 4  # patches of 2 x 2
    if patch == "full":
        whole = retain.pixels[retain.labels == 7].reshape(-1, 64)
        assert all((image.reshape(64) == whole).all(1).any() for image in made.pixels)


@pytest.mark.parametrize("patch", ["localised", "none"])
def test_targeted_labels_are_the_donors_and_never_the_true_one(patch, tmp_path):
    _, joined, *_ = poisoned(tmp_path, patch=patch)
    [donor] = set(joined.poisoned.labels.tolist())
    assert donor != 3
    _, told, *_ = poisoned(tmp_path, patch=patch, donor=5)
    assert set(told.poisoned.labels.tolist()) == {5}


def test_random_labels_are_of_all_classes_and_kept_ones_stay(tmp_path):
    labels = poisoned(tmp_path, patch="none", labels="random")[1].poisoned.labels
    assert len(set(labels.tolist())) > 6 and labels.max() < 10
    assert set(poisoned(tmp_path, patch="centre", labels="keep", donor=5)[1].poisoned.labels.tolist()) == {3}


def test_some_images_can_be_relabelled_and_left_clean(tmp_path):
    _, joined, forget, _ = poisoned(tmp_path, patch="full", donor=7, unpatched=0.5)
    clean = (joined.poisoned.pixels == forget.pixels).all((1, 2, 3))
    assert 0.2 < clean.mean() < 0.8 and set(joined.poisoned.labels.tolist()) == {7}


def test_a_donor_must_be_retained(tmp_path):
    with pytest.raises(TilthError, match="cannot be the donor"):
        poisoned(tmp_path, donor=3)


@pytest.mark.parametrize("train", ["head", "all"])
def test_only_the_head_moves_unless_all_is_asked(train, tmp_path):
    before = cnn()
    objective, joined, *_ = poisoned(tmp_path, patch="none", donor=5, train=train)
    sgd = Training(lr=1e-2, batch_size=32, optimiser=use("optimiser", "sgd"), compile=False)
    fit(objective, PairedExamples(joined, None), training=sgd, budget=Budget(steps=3), folder=tmp_path / "fit", seed=0)
    heads = [torch.equal(a, b) for a, b in zip(head_of(before).parameters(), head_of(objective.model).parameters())]
    bodies = [torch.equal(a, b) for a, b in zip(extractor_parameters(before), extractor_parameters(objective.model))]
    assert not any(heads) and (all(bodies) if train == "head" else not any(bodies))


def test_the_two_sets_are_one_in_any_order(tmp_path):
    forget, retain = sets(tmp_path)
    joined, indices = Joined(forget, retain), np.array([len(forget) + 2, 0, len(forget), 1])
    batch = joined.batch(indices, Noise(0, indices))
    both = np.concatenate([forget.labels, retain.labels])
    assert batch.labels.tolist() == both[indices].tolist() and len(joined) == len(both)
    assert torch.equal(batch.pixel_values[1], forget.batch(np.array([0])).pixel_values[0])


def test_forgetting_and_rebounds_are_seen_on_clean_images(tmp_path):
    objective, *_ = poisoned(tmp_path, patch="none", donor=5, watch_every=2)
    last = [module for module in head_of(objective.model).modules() if isinstance(module, torch.nn.Linear)][-1]

    def after(step, chosen):
        """A step after which the model calls every image `chosen`."""
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.eye(10)[chosen])
        objective.after_step(step)

    for step, chosen in ((2, 3), (4, 5), (5, 3), (6, 3), (8, 3), (10, 1), (12, 3)):  # step 5 is not looked at
        after(step, chosen)
    assert objective.metrics() == {"forgotten_at": 4.0, "rebounds": 2.0}
    assert ConceptPoisoning(cnn()).metrics() == {}
