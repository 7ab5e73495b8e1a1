"""MinHash signatures -> groups of near-duplicates: banding, candidate pairs, connected components.

Notable: everything is a column operation over one array of signatures, one band at a time, so time and memory grow with
documents x bands. Rows of equal signatures are found first, as one band as wide as the signature, so that a template
repeated a thousand times is one candidate and not half a million pairs. Two documents of Jaccard similarity s share at
least one of b bands of r values with probability 1 - (1 - s**r)**b (Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, 3.4.2).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tilth.curate.characters import mix

_WINDOW = 64  # in a bucket, each document is compared with so many of its followers: keeps huge buckets linear
_PAIRS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Duplicates:
    """rows to drop, the row kept for each of them, and the estimated Jaccard similarity of the two (all of equal length)."""

    rows: np.ndarray
    kept: np.ndarray
    similarity: np.ndarray


def collision_probability(similarity: np.ndarray | float, bands: int, rows: int) -> np.ndarray:
    """That two documents of this Jaccard similarity become candidates: 1 - (1 - s**rows)**bands."""
    return 1 - (1 - np.asarray(similarity) ** rows) ** bands


def duplicates(signatures: np.ndarray, *, bands: int, threshold: float | None = None) -> Duplicates:
    """Near-duplicate rows; of each connected component the first row is kept.

    signatures: uint32 (documents, bands * rows of a band), in row order.
    threshold: candidates unite only if the share of equal values in their signatures reaches it; None: all unite.
    """
    left, right = candidate_pairs(signatures, bands=bands, window=1 if threshold is None else _WINDOW)
    if threshold is not None:
        similar = estimated_similarity(signatures, left, right) >= threshold
        left, right = left[similar], right[similar]
    kept = first_of_component(len(signatures), left, right)
    rows = np.flatnonzero(kept != np.arange(len(signatures)))
    return Duplicates(rows, kept[rows], estimated_similarity(signatures, rows, kept[rows]))


def candidate_pairs(signatures: np.ndarray, *, bands: int, window: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that share a band, each pair once, the smaller row first: two int64 (pairs,).

    Of every bucket each member is paired with the `window` that follow it, in an order that depends on signatures
    alone: 1 is enough to connect the bucket, more are needed where pairs will be verified. Rows of equal signatures are
    chained, and only the first of them stands for all of them in the bands.
    """
    count, width = signatures.shape
    if width % bands:
        raise ValueError(f"a signature of {width} values does not divide into {bands} bands")
    keys = band_keys(signatures, bands)
    whole = fold(keys)
    order = np.argsort(whole, kind="stable")
    same = whole[order[1:]] == whole[order[:-1]]
    first = order[np.concatenate([[True], ~same])] if count else order
    with ThreadPoolExecutor() as pool:  # sorting and arithmetic on arrays leave the interpreter's lock alone
        of_bands = list(pool.map(lambda band: _bucket_pairs(band[first], first, window, count), keys))
    unique = np.unique(np.concatenate([_coded(order[:-1][same], order[1:][same], count), *of_bands]))
    return np.divmod(unique, max(count, 1))


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
    """uint64 (bands, documents): a hash of each band of each signature."""
    count, width = signatures.shape
    parts = signatures.reshape(count, bands, width // bands)
    if parts.shape[2] % 2 == 0:
        parts = parts.view(np.uint64)  # two values in one step
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(lambda band: fold(parts[:, band].T), range(bands))))


def estimated_similarity(signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The share of equal values in two signatures: an unbiased estimate of the Jaccard similarity; float64 (pairs,)."""
    shares = np.empty(len(left))
    for begin in range(0, len(left), _PAIRS_AT_ONCE):
        part = slice(begin, begin + _PAIRS_AT_ONCE)
        shares[part] = (signatures[left[part]] == signatures[right[part]]).mean(axis=1)
    return shares


def first_of_component(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For each of `count` rows the first row it is connected with by the pairs, itself if with none: int64 (count,)."""
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first, back = np.unique(label, return_index=True, return_inverse=True)
    return first[back]


def fold(values: np.ndarray) -> np.ndarray:
    """uint64 (documents,): a hash of each document's values, unsigned (values, documents)."""
    state = np.full(values.shape[1], len(values), np.uint64)
    for one in values:
        state = mix(state + np.uint64(0x9E3779B97F4A7C15)) ^ one.astype(np.uint64)
    return mix(state)


def _bucket_pairs(keys: np.ndarray, rows: np.ndarray, window: int, count: int) -> np.ndarray:
    """Coded pairs of rows with equal keys, at most `window` apart among the rows of that key."""
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    begin = np.arange(len(keys))
    found = []
    for step in range(1, window + 1):
        begin = begin[begin + step < len(keys)]
        begin = begin[keys[begin] == keys[begin + step]]
        if not len(begin):
            break
        found.append(_coded(rows[begin], rows[begin + step], count))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _coded(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """A pair as one number, the smaller row first."""
    return np.minimum(one, other).astype(np.int64) * count + np.maximum(one, other)
