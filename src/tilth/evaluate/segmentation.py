"""How well a network names the pixels of a test set: one confusion matrix over all of them, and what follows from it.

Notable: matrices are added on the device, so a set in any batches gives the same numbers; per group of rows (an event, a climate
zone) the same, for the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import load
from tilth.batches.balanced import Balanced
from tilth.batches.images.pictures import natural
from tilth.context import Context
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method, use
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt


@method("benchmark", "segmentation", systems=[6])
class SegmentationScores(Benchmark):
    """Metrics pooled over all pixels of `test` that count   (arXiv 2311.12056, BlackBench)

    For each class: accuracy_C, precision_C, recall_C, f1_C, iou_C; miou: the mean of iou_C over the classes; accuracy: share of right
    pixels; for each name of `merge` the same five after its classes were made one in both prediction and truth (water: [1, 2]).
    A ratio whose denominator is 0 (a class that is neither there nor found) is left out, and so from the mean.

    names: of the classes, in their order. groups: columns of `test`; per value of each, a table of f1, iou and miou as an exhibit.
    together: inputs in one forward pass.
    """

    def __init__(
        self,
        *,
        test: CorpusRef,
        names: list[str] = ["none", "permanent", "flood"],  # noqa: B006
        merge: dict[str, list[NonNegativeInt]] = {},  # noqa: B006
        groups: tuple[str, ...] = (),
        together: PositiveInt = 64,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "segmentation"),
    ) -> None:
        if any(max(merged, default=0) >= len(names) or name in names for name, merged in merge.items()):
            raise TilthError("'merge' gives new names to numbers of classes", where="segmentation.merge", hint="Count from 0.")
        if issubclass(batches.cls, Balanced):
            raise TilthError(
                "'balanced' is for training: scores are of rows as they are", where="segmentation.batches",
                hint="Name what stands under its 'of'.",
            )  # fmt: skip
        self.test, self.names, self.merge, self.groups = test, names, merge, groups
        self.together, self.batches = together, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the network has another number of classes, or the test set lacks a column of `groups`."""
        corpus = context.corpus(self.test)
        if missing := set(self.groups) - set(corpus.columns):
            raise TilthError(f"the corpus has no column '{min(missing)}'", where=corpus.uri)
        rows = self.batches.build().build(corpus, None, context)
        network = load(model).model
        if network.config.num_labels != len(self.names):
            raise TilthError(
                f"the network names {network.config.num_labels} classes and 'names' {len(self.names)}", where="segmentation.names"
            )
        each = confusions(network, rows, len(self.names), self.together)
        for column in self.groups:
            values = corpus.table(["id", column])[column].to_pylist()
            context.exhibit("table", f"By {column}", **self._table(column, each, values))
        return Scores(self.metrics(each.sum(0)))

    def metrics(self, matrix: Tensor) -> dict[str, float]:
        """matrix int64 (classes, classes): truth by prediction."""
        found = {f"{key}_{name}": value for i, name in enumerate(self.names) for key, value in of_class(matrix, [i]).items()}
        ious = [found[f"iou_{name}"] for name in self.names if f"iou_{name}" in found]
        found |= {
            f"{key}_{name}": value for name, merged in self.merge.items() for key, value in of_class(matrix, merged).items()
        }
        total = int(matrix.sum())
        return {
            **found,
            **({"miou": float(np.mean(ious))} if ious else {}),
            **({"accuracy": int(matrix.diagonal().sum()) / total} if total else {}),
        }

    def _table(self, column: str, each: Tensor, values: list[Any]) -> dict[str, Any]:
        kinds, place = np.unique([str(value) for value in values], return_inverse=True)
        pooled = torch.zeros(len(kinds), *each.shape[1:], dtype=torch.int64).index_add_(0, torch.from_numpy(place), each)
        shown = ["miou", *(f"{key}_{name}" for key in ("f1", "iou") for name in (*self.names, *self.merge))]
        rows = []
        for kind, matrix in zip(kinds.tolist(), pooled, strict=True):
            scores = self.metrics(matrix)
            rows.append([kind, int(matrix.sum()), *(round(scores[name], 4) if name in scores else None for name in shown)])
        return {"columns": [column, "pixels", *shown], "rows": rows}


def confusions(network: torch.nn.Module, rows: Any, classes: int, together: int = 64) -> Tensor:
    """int64 (rows, classes, classes): truth by prediction of every row's pixels, ignored ones left out."""
    found = []
    with evaluating(network) as device:
        for start in range(0, len(rows), together):
            indices = np.arange(start, min(start + together, len(rows)))
            batch = rows.batch(indices, Noise(0, indices)).to(device)
            found.append(confusion(network(pixel_values=natural(batch.pixel_values)).logits.argmax(1), batch.mask, classes))
    return torch.cat(found).cpu()


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 (batch, classes, classes): how many pixels of class i were called j; truth below 0 is left out."""
    truth, predicted = truth.flatten(1), predicted.flatten(1)
    place = torch.where(truth >= 0, truth * classes + predicted, classes**2)
    place = place + torch.arange(len(truth), device=truth.device)[:, None] * (classes**2 + 1)
    counts = torch.bincount(place.flatten(), minlength=len(truth) * (classes**2 + 1)).reshape(len(truth), -1)
    return counts[:, :-1].reshape(-1, classes, classes)


def of_class(matrix: Tensor, members: list[int]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and IoU of `members` as one class against the rest."""
    there, called = matrix[members].sum().item(), matrix[:, members].sum().item()
    right, total = matrix[members][:, members].sum().item(), matrix.sum().item()
    ratios = {
        "accuracy": (total - there - called + 2 * right, total), "precision": (right, called), "recall": (right, there),
        "f1": (2 * right, there + called), "iou": (right, there + called - right),
    }  # fmt: skip
    return {name: above / below for name, (above, below) in ratios.items() if below}
