"""How well a network tells objects of one kind apart: its affinities, and the objects that are made of them.

Notable: an array is read window by window from disk; confusion matrices and tables of shared voxels are added over arrays, so
that every metric is one of all voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import load
from tilth.batches.images.instances import InstanceRows, Instances
from tilth.batches.images.pictures import natural
from tilth.batches.images.sheet import sheet
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, Scores, method
from tilth.corpus.tiling import stitched, windows
from tilth.evaluate.agglomeration import Labels, scikit_image, segmented
from tilth.evaluate.segmentation import confusion, of_class
from tilth.pretrain.images.affinity import affinities, chosen, fitting, shown, stretched
from tilth.registry import Fraction, NonNegativeInt, PositiveInt

_NOTE = (
    "Left to right: the input, where it is one object with what lies before it (white: along all axes, black: along none, grey: "
    "not known), the same as the network predicts it, and the objects made of that."
)


@method("benchmark", "instances", systems=[47])
class InstanceScores(Benchmark):
    """Affinities and objects, pooled over all voxels of `test` that count   (arXiv 2405.16847)

    affinity_f1, affinity_iou, boundary_f1, boundary_iou: of "one object with the voxel before it" and of "not", all axes
    together, where the affinity is known (see `affinities`). A ratio whose denominator is 0 is left out.
    voi_split, voi_merge, voi, arand: of objects (`segmented`), over voxels of true id > 0. voi_split is H(object | id), bits that
    say which of an id's several objects a voxel is in; voi_merge is H(id | object); voi their sum (Meila, 2007); arand 1 - the
    harmonic mean of Rand precision and recall (SNEMI3D). Perfect is 0; if all is one object, voi_split is 0 and voi_merge H(id).
    Left out where there is no true id.

    test: rows with `array` and `mask` of ids, all of one size. size, overlap: of the windows that the network sees, along each
    axis, whose predictions are joined by a Gaussian-weighted mean; overlap by a voxel at least, for the first voxels of a
    window have affinities that were not trained. axes: as the network was trained; positions along other axes are segmented
    each on its own, so an id that goes through several is split. threshold: above which an affinity joins. together: windows in
    one forward pass. One array's affinities and ids are in memory.
    """

    def __init__(
        self,
        *,
        test: CorpusRef,
        size: list[PositiveInt] = [16, 160, 160],  # noqa: B006
        overlap: list[NonNegativeInt] = [8, 80, 80],  # noqa: B006
        axes: tuple[NonNegativeInt, ...] | None = None,
        threshold: Fraction = 0.5,
        together: PositiveInt = 4,
    ) -> None:
        windows(size, size, overlap)  # raises where windows cannot overlap by so much
        self.test, self.size, self.overlap, self.axes = test, size, overlap, axes
        self.threshold, self.together = threshold, together

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the network gives another number of affinities than `axes`, and without scikit-image."""
        scikit_image("metrics")
        network = load(model).model
        rows = Instances().build(context.corpus(self.test), None, context)
        axes = chosen(self.axes, len(rows.sample.size))
        matrix, tables = torch.zeros(2, 2, dtype=torch.int64), []
        for index in range(len(rows)):
            found = predicted(network, rows.pixels[index], len(axes), self.size, self.overlap, self.together)
            ids = torch.from_numpy(rows.ids[[index]])
            targets, valid = affinities(ids, axes)
            called = torch.from_numpy(found > self.threshold)[None].long()
            matrix += confusion(called, torch.where(valid, targets, -1).long(), 2)[0]
            objects = segmented(found, axes, self.threshold)
            tables.append(shared_voxels(rows.ids[index], objects))
            if index == 0:
                self._show(context, rows, shown(targets, valid), found, objects)
        return Scores({**affinity_scores(matrix), **object_scores(tables)})

    def _show(self, context: Context, rows: InstanceRows, true: Tensor, found: NDArray[Any], objects: Labels) -> None:
        """The section of the first array that has most of objects."""
        inside = rows.ids[0] > 0
        section = inside.reshape(len(inside), -1).sum(1).argmax() if inside.ndim > 2 else slice(None)
        pixels = stretched(natural(torch.from_numpy(rows.pixels[[0]])))
        colours = np.random.default_rng(0).uniform(0.2, 1.0, (int(objects.max()) + 1, 3))
        pictures = [pixels[0].numpy(), true[0].numpy(), found.mean(0, keepdims=True)]
        painted = np.moveaxis(colours[objects[section]], -1, 0)
        png = sheet([[*(picture[:, section] for picture in pictures), painted]])
        context.exhibit("picture", "Objects of a section", png=png, note=_NOTE)


def predicted(
    network: nn.Module, pixels: NDArray[Any], axes: int, size: Sequence[int], overlap: Sequence[int], together: int = 4
) -> NDArray[Any]:
    """Affinities (axes, *shape) in [0, 1] of an array (channels, *shape): sigmoids of windows in a Gaussian-weighted mean.

    axes: how many the network must give.
    """
    shape = pixels.shape[1:]
    places = list(windows(shape, size, overlap))

    def tiles(device: torch.device) -> Iterator[tuple[list[int], NDArray[Any]]]:
        for start in range(0, len(places), together):
            group = places[start : start + together]
            values = torch.from_numpy(np.stack([pixels[(slice(None), *window)] for window in group])).to(device)
            found = fitting(network(pixel_values=natural(values)).logits, axes).float().sigmoid().cpu().numpy()
            yield from zip(([side.start for side in window] for window in group), found, strict=True)

    with evaluating(network) as device:
        return stitched(tiles(device), shape)


def affinity_scores(matrix: Tensor) -> dict[str, float]:
    """matrix int64 (2, 2): truth by prediction, class 1 where voxels belong together."""
    return {
        f"{name}_{key}": value
        for place, name in enumerate(("boundary", "affinity"))
        for key, value in of_class(matrix, [place]).items()
        if key in ("f1", "iou")
    }


def shared_voxels(ids: NDArray[Any], objects: Labels) -> Any:
    """How many voxels of each true id > 0 (rows) lie in each object (columns): a sparse table, empty where there is no id."""
    counted = ids > 0
    truth, called = (np.unique(labels[counted], return_inverse=True)[1] for labels in (ids, objects))
    size = (int(truth.max(initial=-1)) + 1, int(called.max(initial=-1)) + 1)
    return sparse.csr_array((np.ones(len(truth)), (truth, called)), size)


def object_scores(tables: Sequence[Any]) -> dict[str, float]:
    """tables: `shared_voxels` of each array, whose ids and objects have nothing to do with those of another array."""
    pooled = sparse.block_diag(list(tables), "csr")
    if not pooled.sum():
        return {}
    metrics = scikit_image("metrics")
    ignored = np.zeros(1, np.int64)  # with a table images count for nothing, yet scikit-image compares their shapes
    entropies = metrics.variation_of_information(ignored, ignored, table=pooled / pooled.sum())
    split, merge = (max(0.0, float(bits)) for bits in entropies)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no two voxels are together in ids, or in objects, or in both
        arand = float(np.nan_to_num(metrics.adapted_rand_error(table=pooled)[0]))
    return {"voi_split": split, "voi_merge": merge, "voi": split + merge, "arand": arand}
