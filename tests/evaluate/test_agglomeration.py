"""From perfect affinities to the objects they were made of; which regions are merged, and by which mean."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from tests.sections import drawn
from tilth.errors import TilthError
from tilth.evaluate import agglomeration
from tilth.evaluate.agglomeration import agglomerated, fragments, segmented
from tilth.pretrain.images.affinity import affinities


def perfect(ids, axes):
    return affinities(torch.from_numpy(ids)[None], axes)[0][0].numpy()


def same_partition(a, b):
    """Whether two labellings put the same voxels together."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(a)) == len(np.unique(b))


def labelling(side=24):
    """Objects through the depth that drift, with a voxel of background between them: a 3-D labelling of six."""
    ids = np.zeros((6, side, side), np.int64)
    for z in range(6):
        for number, (top, left) in enumerate(((0, 0), (0, 12), (8, 1), (8, 13), (16, 0), (16, 12))):
            ids[z, top : top + 7, left : left + 10 + z % 2] = number + 1
    return ids


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_perfect_affinities_give_back_the_labelling(axes):
    ids = labelling()
    found = segmented(perfect(ids, axes), axes)
    assert found.min() == 1 and same_partition(found[ids > 0], ids[ids > 0])


def test_sections_on_their_own_give_back_their_labelling_and_share_no_object():
    _, cells = drawn(5, 48, seed=3)
    ids = np.zeros(cells.shape, np.int64)
    for z, section in enumerate(cells):
        found, _ = label(section)
        ids[z] = np.where(found > 0, found + ids.max(), 0)
    for axes in ((1, 2), (2, 1)):
        found = segmented(perfect(ids, axes), axes)
        assert same_partition(found[ids > 0], ids[ids > 0])
        sets = [set(np.unique(section)) for section in found]
        assert len(set.union(*sets)) == sum(map(len, sets)) == found.max()


def test_a_section_alone_is_segmented_as_a_picture_is():
    ids = labelling()[1]
    assert same_partition(segmented(perfect(ids, (0, 1)), (0, 1))[ids > 0], ids[ids > 0])


def test_an_object_with_a_waist_is_two_fragments_and_one_object():
    ids = np.zeros((11, 21), np.int64)
    ids[:, :9] = ids[:, 12:] = ids[2:9] = 1
    given = perfect(ids, (0, 1))
    parts = fragments(given, (0, 1), 0.5)
    assert len(np.unique(parts[ids > 0])) > 1
    assert len(np.unique(agglomerated(parts, given, (0, 1))[ids > 0])) == 1


def test_where_all_or_nothing_is_affine_there_is_one_fragment():
    for value in (1.0, 0.0, 0.5):
        assert (fragments(np.full((2, 4, 5), value), (0, 1), 0.5) == 1).all()


def strips(*widths):
    """Regions 1, 2 ... side by side, three voxels high, and affinities of 0 for their faces."""
    labels = np.repeat(np.arange(1, len(widths) + 1), widths)[None].repeat(3, 0)
    return labels, np.zeros((2, *labels.shape))


def test_regions_of_high_affinity_are_merged_and_others_are_not():
    labels, given = strips(2, 2, 2, 2)
    given[1][:, 2], given[1][:, 4], given[1][:, 6] = 0.9, 0.5, 0.6
    assert agglomerated(labels, given, (0, 1))[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert agglomerated(labels, given, (0, 1), 0.95)[0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(np.unique(agglomerated(labels, given, (0, 1), 0.4))) == 1
    # Affinities of other voxels, and of the first, which have no face, say nothing.
    given[0], given[1][:, [0, 1, 3, 5, 7]] = 1, 1
    assert agglomerated(labels, given, (0, 1))[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_the_mean_is_over_all_faces_of_what_was_merged():
    # 1 and 2 merge first. 3 lies below both: with 2 alone its mean is 0.8, with both (4 x 0.2 + 2 x 0.8) / 6 = 0.4.
    labels = np.array([[1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3]])
    given = np.zeros((2, 2, 6))
    given[1, 0, 4] = 0.9
    given[0, 1] = [0.2, 0.2, 0.2, 0.2, 0.8, 0.8]
    assert agglomerated(labels, given, (0, 1)).tolist() == [[1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]]
    # The other way round 3 is affine enough to both once they are one, though not to 2.
    given[0, 1] = [0.8, 0.8, 0.8, 0.8, 0.2, 0.2]
    given[1, 0, 4] = 0.85
    assert len(np.unique(agglomerated(labels, given, (0, 1)))) == 1
    # The mean over six faces is 0.5; that of the two means would be 0.45.
    given[0, 1] = [0.6, 0.6, 0.6, 0.6, 0.3, 0.3]
    assert len(np.unique(agglomerated(labels, given, (0, 1), 0.49))) == 1


def slowly(labels, given, axes, threshold):
    """The same by its definition: all means anew before every merger."""
    labels = labels.copy()
    while True:
        means = {}
        for along, axis in zip(given, axes, strict=True):
            regions, values = np.moveaxis(labels, axis, 0), np.moveaxis(along, axis, 0)
            for a, b, value in zip(regions[:-1].ravel(), regions[1:].ravel(), values[1:].ravel(), strict=True):
                if a != b:
                    means.setdefault((min(a, b), max(a, b)), []).append(value)
        if not means:
            return labels
        pair = max(means, key=lambda pair: np.mean(means[pair]))
        if np.mean(means[pair]) <= threshold:
            return labels
        labels[labels == pair[1]] = pair[0]


@pytest.mark.parametrize("seed", range(6))
def test_the_heap_merges_what_the_definition_does(seed):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.permutation(48).reshape(3, 4, 4) + 1, np.ones((2, 2, 3), np.int64))
    given = rng.random((3, *labels.shape))
    found = agglomerated(labels, given, (0, 1, 2), 0.52)
    assert same_partition(found, slowly(labels, given, (0, 1, 2), 0.52)) and 1 < len(np.unique(found)) < 48


def test_without_scikit_image_it_is_said_how_to_get_it(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(agglomeration, "import_module", missing)
    with pytest.raises(TilthError, match="scenes"):
        agglomeration.scikit_image("metrics")
