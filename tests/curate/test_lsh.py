import daft
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tilth.curate.lsh import candidate_pairs, collision_probability, duplicates, estimated_similarity, first_of_component
from tilth.curate.near_dedup import NearDedup


def signatures(texts: list[str], **settings) -> np.ndarray:
    step = NearDedup(**settings)
    column = daft.from_pydict({"text": texts}).select(step.signature(daft.col("text")).alias("s")).to_arrow()["s"]
    return column.combine_chunks().flatten().to_numpy().reshape(len(texts), -1)


def pairs_of_similarity(similarity: float, count: int, size: int = 60) -> tuple[list[str], float]:
    """2 * count texts of single-word shingles; 2i and 2i + 1 have this Jaccard similarity, others none."""
    shared = round(2 * size * similarity / (1 + similarity))
    texts = []
    for pair in range(count):
        common = [f"c{pair}x{k}" for k in range(shared)]
        for side in "lr":
            texts.append(" ".join(common + [f"{side}{pair}x{k}" for k in range(size - shared)]))
    return texts, shared / (2 * size - shared)


def random_signatures(count: int, width: int, values: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, (count, width), dtype=np.uint32)


def pairs_by_definition(array: np.ndarray, bands: int) -> set[tuple[int, int]]:
    parts = array.reshape(len(array), bands, array.shape[1] // bands)
    return {(i, j) for i in range(len(array)) for j in range(i + 1, len(array)) if (parts[i] == parts[j]).all(axis=1).any()}


def components(count: int, pairs: set[tuple[int, int]]) -> list[int]:
    """The first member of each row's component, by repeated relabelling."""
    label = list(range(count))
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            low = min(label[i], label[j])
            changed |= label[i] != low or label[j] != low
            label[i] = label[j] = low
    return label


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.sampled_from([(1, 3), (2, 2), (3, 1), (4, 2)]), st.integers(2, 5), st.integers(0, 10**6))
def test_groups_are_those_of_the_definition(count, shape, values, seed):
    bands, rows = shape
    array = random_signatures(count, bands * rows, values, seed)
    expected = components(count, pairs_by_definition(array, bands))
    left, right = candidate_pairs(array, bands=bands)
    assert first_of_component(count, left, right).tolist() == expected
    found = duplicates(array, bands=bands)
    assert found.rows.tolist() == [row for row in range(count) if expected[row] != row]
    assert found.kept.tolist() == [expected[row] for row in found.rows]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(2, 4), st.integers(0, 10**6))
def test_verified_groups_hold_all_pairs_that_reach_the_threshold(count, values, seed):
    array = random_signatures(count, 6, values, seed)
    similar = {(i, j) for i, j in pairs_by_definition(array, 3) if (array[i] == array[j]).mean() >= 0.6}
    found = duplicates(array, bands=3, threshold=0.6)
    expected = components(count, similar)
    assert found.rows.tolist() == [row for row in range(count) if expected[row] != row]


def test_a_pair_is_listed_once_and_ordered():
    array = random_signatures(200, 6, 2, 0)
    left, right = candidate_pairs(array, bands=3, window=4)
    assert (left < right).all()
    assert len(np.unique(left * 200 + right)) == len(left)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from([None, 0.5]))
def test_groups_do_not_depend_on_the_order_of_rows(count, seed, threshold):
    array = random_signatures(count, 6, 3, seed)
    order = np.random.default_rng(seed + 1).permutation(count)

    def groups(result, names):
        kept = {**dict(zip(range(count), range(count))), **dict(zip(result.rows.tolist(), result.kept.tolist()))}
        byfirst: dict[int, set[int]] = {}
        for row, first in kept.items():
            byfirst.setdefault(first, set()).add(int(names[row]))
        return {frozenset(group) for group in byfirst.values()}

    straight = duplicates(array, bands=3, threshold=threshold)
    shuffled = duplicates(array[order], bands=3, threshold=threshold)
    assert groups(straight, np.arange(count)) == groups(shuffled, order)


def test_components_are_transitive():
    first = first_of_component(6, np.array([4, 1]), np.array([1, 5]))
    assert first.tolist() == [0, 1, 2, 3, 1, 1]


def test_a_template_repeated_often_stays_linear():
    array = np.concatenate([np.zeros((50_000, 112), np.uint32), random_signatures(10, 112, 2**32 - 1, 0)])
    left, _ = candidate_pairs(array, bands=14, window=64)
    assert len(left) == 49_999
    assert len(duplicates(array, bands=14, threshold=0.8).rows) == 49_999


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8])
def test_candidates_follow_the_curve_within_binomial_error(similarity):
    texts, exact = pairs_of_similarity(similarity, 1500)
    left, right = candidate_pairs(signatures(texts, size=1), bands=14)
    hits = int(((right == left + 1) & (left % 2 == 0)).sum())
    probability = float(collision_probability(exact, 14, 8))
    low, high = binom.ppf([1e-6, 1 - 1e-6], 1500, probability)
    assert low <= hits <= high


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.9])
def test_the_estimate_is_unbiased_with_the_variance_of_a_binomial(similarity):
    texts, exact = pairs_of_similarity(similarity, 1200)
    array = signatures(texts, size=1)
    estimates = estimated_similarity(array, np.arange(0, 2400, 2), np.arange(1, 2400, 2))
    variance = exact * (1 - exact) / 112
    assert estimates.mean() == pytest.approx(exact, abs=5 * np.sqrt(variance / 1200))
    assert estimates.var() == pytest.approx(variance, rel=0.35)


def test_an_impossible_banding_is_refused():
    with pytest.raises(ValueError, match="does not divide"):
        candidate_pairs(np.zeros((2, 10), np.uint32), bands=3)
