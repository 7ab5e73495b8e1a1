import numpy as np
import pytest
import torch

from tests.images import cnn
from tilth.errors import TilthError
from tilth.unlearn.concepts import (
    Bottleneck,
    ConceptBank,
    activation_vector,
    class_concepts,
    corners,
    patch_embeddings,
    peaks,
    windows,
)
from tilth.unlearn.patches import crop, inside, paste


def bank(vectors, intercepts=None):
    vectors = np.asarray(vectors, np.float32)
    given = np.zeros(len(vectors)) if intercepts is None else np.asarray(intercepts)
    return ConceptBank([f"c{k}" for k in range(len(vectors))], vectors, given.astype(np.float32))


def test_the_score_of_a_concept_is_1_on_itself_and_0_at_a_right_angle():
    vectors = np.eye(5, dtype=np.float32)[:3]
    np.testing.assert_allclose(bank(vectors).scores(vectors), np.eye(3))
    assert bank(vectors).scores(np.eye(5, dtype=np.float32)[3:]).max() == 0


def test_scores_are_distances_whatever_the_length_of_the_normal():
    one, other = bank([[3.0, 4.0]], [10.0]), bank([[0.6, 0.8]], [2.0])
    points = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    np.testing.assert_allclose(one.scores(points), other.scores(points), rtol=1e-5)


def test_a_concept_the_bank_lacks_is_named():
    assert bank(np.eye(3)).chosen(["c2", "c0"]).names == ["c2", "c0"]
    with pytest.raises(TilthError, match="'c9'"):
        bank(np.eye(3)).chosen(["c9"])


def test_an_activation_vector_finds_the_planted_direction():
    random = np.random.default_rng(0)
    without = random.normal(size=(300, 8)).astype(np.float32)
    direction = np.full(8, 8**-0.5, dtype=np.float32)
    vector, intercept = activation_vector(without + 5 * direction, without)
    assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-5) and vector @ direction > 0.95
    assert intercept == pytest.approx(-2.5 * (vector @ direction), abs=0.5)


def planted(count=600):
    """Class 0 has direction 0, class 1 has directions 1 and (weakly) 0, class 2 has direction 2."""
    random = np.random.default_rng(1)
    labels = np.arange(count) % 3
    centres = np.array([[3, 0, 0, 0], [0.5, 3, 0, 0], [0, 0, 3, 0]], dtype=np.float32)
    return (centres[labels] + 0.5 * random.normal(size=(count, 4))).astype(np.float32), labels


def test_the_planted_concept_has_the_greatest_weight_and_its_other_user_is_the_donor():
    embeddings, labels = planted()
    found = Bottleneck(bank(np.eye(4)), embeddings, labels)
    assert found.accuracy > 0.95
    assert [found.influential(label)[0] for label in range(3)] == [0, 1, 2]
    assert found.donor(0, 0) != 0 and found.donor(2, 0) == 0


def test_two_classes_have_opposite_weights():
    embeddings, labels = planted()
    two = labels < 2
    found = Bottleneck(bank(np.eye(4)), embeddings[two], labels[two])
    np.testing.assert_array_equal(found.row(0), -found.row(1))
    assert found.influential(0)[0] == 0 and found.influential(1)[0] == 1


def test_class_concepts_separate_their_patches():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    patches = random.normal(size=(60, 4, 8)).astype(np.float32) + 4 * np.eye(8, dtype=np.float32)[labels][:, None]
    found = class_concepts(patches, labels)
    assert (found.scores(patches.mean(1)).argmax(1) == labels).mean() > 0.95 and len(found.names) == 3


def test_windows_are_the_patches_at_the_corners():
    pixels = torch.arange(2 * 3 * 6 * 8.0).reshape(2, 3, 6, 8)
    cut, at = windows(pixels, 3, 2), corners(6, 8, 3, 2)
    assert cut.shape[:2] == (2, len(at))
    for place, (y, x) in enumerate(at.tolist()):
        assert torch.equal(cut[:, place], pixels[:, :, y : y + 3, x : x + 3])


def test_the_one_patch_of_a_concept_is_found_within_a_stride():
    torch.manual_seed(0)
    model, size, stride = cnn(), 4, 2
    bright = torch.linspace(-3, 3, 16).reshape(4, 4)
    vector = patch_embeddings(model, torch.nn.functional.pad(bright, (0, 4, 0, 4))[None, None], size, stride)[0, 0]
    for y, x in ((0, 0), (2, 4), (4, 1), (3, 3)):
        image = 0.3 * torch.randn(1, 1, 8, 8)
        image[..., y : y + 4, x : x + 4] = bright
        assert np.abs(peaks(model, image, vector, size, stride)[0] - [y, x]).max() <= stride


def test_what_is_cut_out_and_pasted_back_restores_the_image():
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (5, 3, 9, 7)).astype(np.uint8)
    corner = random.integers(0, 4, (5, 2))
    patches = crop(images, corner, 3)
    assert np.array_equal(paste(images, patches, corner), images)
    changed = paste(images, 255 - patches, corner)
    assert np.array_equal(crop(changed, corner, 3), 255 - patches) and (changed != images).sum() <= 5 * 3 * 9
    assert np.array_equal(paste(changed, patches, corner), images)


def test_a_patch_at_the_border_is_moved_inside():
    corner = np.array([[-2, 3], [8, 8], [1, 1]])
    assert inside(corner, 3, 6, 7).tolist() == [[0, 3], [3, 4], [1, 1]]
    images = np.zeros((3, 1, 6, 7), np.uint8)
    assert (paste(images, np.ones((3, 1, 3, 3), np.uint8), corner).sum((1, 2, 3)) == 9).all()
