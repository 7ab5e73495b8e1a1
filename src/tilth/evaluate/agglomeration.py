"""From affinities to objects: watershed fragments, which are merged while the affinity across what they share is high.

Notable: a heap of faces between regions, most affine first; entries of regions that have changed since are passed over when they
come up, so a merger costs the neighbours of one region.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tilth.errors import TilthError

Labels = NDArray[np.int64]


def scikit_image(module: str) -> Any:
    """A module of scikit-image, or TilthError where it is not installed."""
    try:
        return import_module(f"skimage.{module}")
    except ImportError:
        raise TilthError("objects are told apart by the package `scikit-image`", hint="pip install 'tilth[scenes]'") from None


def segmented(affinities: NDArray[Any], axes: Sequence[int], threshold: float = 0.5) -> Labels:
    """The object of every voxel, from 1 on: int64 (*size).

    affinities: (axes, *size) in [0, 1], of a voxel and the one before it along each of `axes`. What lies at each position along
    the other axes is segmented on its own, and no two positions share an object.

    Fragments (`fragments`), then `agglomerated`. The authors of arXiv 2405.16847 make fragments in sections alone and
    agglomerate through the depth too; here fragments are of all `axes`. Objects should lie at least a voxel of background
    apart, as cells do that membranes divide (the authors widen borders for that): where they touch, their outermost voxels may
    go to either, and with three axes the mean affinity there is above one half, so that they can become one.
    """
    size = affinities.shape[1:]
    within = sorted(axes)
    others = [axis for axis in range(len(size)) if axis not in within]
    labels = np.zeros(size, np.int64)
    done = 0
    for place in np.ndindex(*(size[axis] for axis in others)):
        where: list[Any] = [slice(None)] * len(size)
        for axis, position in zip(others, place, strict=True):
            where[axis] = position
        part = affinities[(slice(None), *where)]
        own = [within.index(axis) for axis in axes]
        found = agglomerated(fragments(part, own, threshold), part, own, threshold)
        labels[tuple(where)] = found + done
        done += int(found.max())
    return labels


def fragments(affinities: NDArray[Any], axes: Sequence[int], threshold: float) -> Labels:
    """Watershed of 1 - the mean affinity of every voxel, int64 from 1 on; as of `segmented`, `axes` being all that there are.

    Seeds are the maxima (connected, corners included) of the distance to where the mean affinity is not above `threshold`.
    Where all of it is above, or nothing, there is one fragment.
    """
    mean = np.mean([_filled(values, axis) for values, axis in zip(affinities, axes, strict=True)], 0)
    inside = mean > threshold
    if inside.all() or not inside.any():
        return np.ones(mean.shape, np.int64)
    maxima = scikit_image("morphology").local_maxima(distance_transform_edt(inside))
    seeds = scikit_image("measure").label(maxima)
    return scikit_image("segmentation").watershed(1 - mean, seeds).astype(np.int64)  # type: ignore[no-any-return]


def _filled(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """The first voxels of an axis have nothing before them to be affine to: they take the affinity of the second ones, or 1."""
    filled = np.moveaxis(values.copy(), axis, 0)
    filled[:1] = filled[1:2] if len(filled) > 1 else 1
    return np.moveaxis(filled, 0, axis)


def agglomerated(labels: Labels, affinities: NDArray[Any], axes: Sequence[int], threshold: float = 0.5) -> Labels:
    """Regions merged two by two, those first whose faces have the highest mean affinity, until no mean is above `threshold`.

    labels: int (*size), from 1 on; affinities (axes, *size). A face lies between a voxel and the one before it along one of
    `axes`; when regions are merged, the mean is anew that over all faces (mean linkage). Gives int64 (*size), from 1 on.
    """
    around, heap = _graph(labels, affinities, axes)
    into = np.arange(int(labels.max()) + 1)
    while heap and -heap[0][0] > threshold:
        mean, a, b = heappop(heap)
        face = around.get(a, {}).get(b)
        if face is None or -face[0] / face[1] != mean:
            continue  # one of the two has been merged since
        keep, gone = (a, b) if len(around[a]) >= len(around[b]) else (b, a)
        into[gone] = keep
        del around[keep][gone]
        for other, (total, count) in around.pop(gone).items():
            if other == keep:
                continue
            del around[other][gone]
            joint = around[keep].setdefault(other, [0.0, 0.0])
            joint[0] += total
            joint[1] += count
            around[other][keep] = joint
            heappush(heap, (-joint[0] / joint[1], min(keep, other), max(keep, other)))
    while (into[into] != into).any():
        into = into[into]
    return np.unique(into[labels], return_inverse=True)[1].reshape(labels.shape) + 1


def _graph(
    labels: Labels, affinities: NDArray[Any], axes: Sequence[int]
) -> tuple[dict[int, dict[int, list[float]]], list[tuple[float, int, int]]]:
    """The regions around each, with [sum of affinities, number] of the faces they share; and a heap of (-mean, a, b)."""
    pairs, values = [], []
    base = int(labels.max()) + 1
    for along, axis in zip(affinities, axes, strict=True):
        regions = np.moveaxis(labels, axis, 0)
        before, here = regions[:-1], regions[1:]
        apart = before != here
        before, here = before[apart], here[apart]
        pairs.append(np.minimum(before, here) * base + np.maximum(before, here))
        values.append(np.moveaxis(along, axis, 0)[1:][apart])
    edges, place = np.unique(np.concatenate(pairs), return_inverse=True)
    totals = np.bincount(place, np.concatenate(values).astype(np.float64), len(edges)).tolist()
    counts = np.bincount(place, minlength=len(edges)).tolist()
    around: dict[int, dict[int, list[float]]] = {}
    heap = []
    for edge, total, count in zip(edges.tolist(), totals, counts, strict=True):
        a, b = divmod(edge, base)
        around.setdefault(a, {})[b] = around.setdefault(b, {})[a] = [total, float(count)]
        heap.append((-total / count, a, b))
    heapify(heap)
    return around, heap
