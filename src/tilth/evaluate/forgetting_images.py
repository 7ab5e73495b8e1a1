"""What a classifier of images still knows of images, or of a class, that were to be forgotten.

Notable: the goal is to be like the model that never saw them ('gold'), not 0 % or chance; accuracies are always of clean
images, and every figure can be had of gold and of the original model from the same code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from sklearn.linear_model import LogisticRegression

from tilth.backbones.folder import load
from tilth.backbones.heads import embed_all
from tilth.batches.images.labelled import ImageRows
from tilth.context import Context
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, ModelRef, Scores, method, use
from tilth.errors import TilthError
from tilth.evaluate.image_membership import attack_success_rate, loss_attack_gap
from tilth.evaluate.transfer import member_transfer_rate

Outputs = dict[str, tuple[np.ndarray, np.ndarray]]  # set -> embeddings, logits


@method("benchmark", "forgetting_classes", systems=[19, 35])
class ForgettingClasses(Benchmark):
    """Accuracy on what stays and what was to go, and attacks   (arXiv 2404.00506, section 4.1; arXiv 2405.15662)

    remaining, forgotten: training images that stay, and those that were to go; test: unseen images. Test images of classes of
    which no training image stays are `forgotten_test`, the others `remaining_test`: where single images are forgotten,
    all of them.

    Metrics: remaining_train, forgotten_train, remaining_test, forgotten_test (accuracies); attack_success (boosted trees, as
    in LAF); loss_attack_gap (forgotten against unseen images of their classes); probe (accuracy with which a linear probe
    on the embeddings, fitted to all training images, still finds forgotten test images: of classes only); classes taken
    for the forgotten one most often as `most_routed` (share of forgotten_train).
    With before (the original model): svm_transfer and svm_miss (`evaluate.transfer`, on logits), drift_remaining and drift_forgotten
    (mean of 1 - cosine of embeddings, training images).
    With gold: gap_<accuracy> and gap_attack_success, the distances from gold's, and gap, the greatest of the accuracies'.
    """

    def __init__(
        self,
        *,
        remaining: CorpusRef,
        forgotten: CorpusRef,
        test: CorpusRef,
        before: ModelRef | None = None,
        gold: ModelRef | None = None,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "images"),
    ) -> None:
        self.sets = {"remaining": remaining, "forgotten": forgotten, "test": test}
        self.before, self.gold, self.batches = before, gold, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the batches are not of images."""
        sets = {name: self.batches.build().build(context.corpus(ref), None, context) for name, ref in self.sets.items()}
        if not all(isinstance(rows, ImageRows) for rows in sets.values()):
            raise TilthError(f"'{self.batches.name}' does not make batches of images", where="forgetting_classes.batches")
        outputs = _outputs(model, sets)
        found = measured(outputs, sets, context.seed)
        if self.before is not None:
            found |= compared(outputs, _outputs(context.model(self.before), sets), sets)
        if self.gold is not None:
            gold = measured(_outputs(context.model(self.gold), sets), sets, context.seed)
            accuracies = [name for name in found if name in gold and name.endswith(("_train", "_test"))]
            gaps = {f"gap_{name}": abs(found[name] - gold[name]) for name in [*accuracies, "attack_success"]}
            found |= {**gaps, "gap": max(gaps[f"gap_{name}"] for name in accuracies)}
        context.exhibit("table", "Forgetting", columns=["figure", "value"], rows=[[name, value] for name, value in found.items()])
        logits, labels = outputs["forgotten"][1], sets["forgotten"].labels
        ids = context.corpus(self.sets["forgotten"]).table(["id"]).column("id").to_pylist()
        return Scores(found, {"id": ids, "label": labels.tolist(), "predicted": logits.argmax(1).tolist()})


def _outputs(model: Path, sets: dict[str, ImageRows]) -> Outputs:
    network = load(model).model
    return {name: embed_all(network, rows) for name, rows in sets.items()}


def measured(outputs: Outputs, sets: dict[str, ImageRows], seed: int) -> dict[str, float]:
    """Accuracies, attacks, probe and routing of one model."""
    labels = {name: rows.labels for name, rows in sets.items()}
    right = {name: logits.argmax(1) == labels[name] for name, (_, logits) in outputs.items()}
    gone = ~np.isin(labels["test"], labels["remaining"])
    found = {
        "remaining_train": float(right["remaining"].mean()),
        "forgotten_train": float(right["forgotten"].mean()),
        "remaining_test": float(right["test"][~gone].mean()),
    }
    if gone.any():
        found["forgotten_test"] = float(right["test"][gone].mean())
        embeddings = np.concatenate([outputs["remaining"][0], outputs["forgotten"][0]])
        probe = LogisticRegression(max_iter=1000).fit(embeddings, np.concatenate([labels["remaining"], labels["forgotten"]]))
        found["probe"] = float(probe.score(outputs["test"][0][gone], labels["test"][gone]))
    routed = np.bincount(outputs["forgotten"][1].argmax(1))
    logits = {name: values for name, (_, values) in outputs.items()}
    kin = np.isin(labels["test"], labels["forgotten"])
    found["most_routed"] = float(routed.max() / routed.sum())
    found["attack_success"] = attack_success_rate(logits["remaining"], logits["test"], logits["forgotten"], seed=seed)
    found["loss_attack_gap"] = loss_attack_gap(
        logits["forgotten"], labels["forgotten"], logits["test"][kin], labels["test"][kin], seed=seed
    )
    return found


def compared(outputs: Outputs, before: Outputs, sets: dict[str, ImageRows]) -> dict[str, float]:
    """What became of the forgotten images since the original model."""
    kin = np.isin(sets["test"].labels, sets["forgotten"].labels)
    transfer, miss = member_transfer_rate(before["forgotten"][1], before["test"][1][kin], outputs["forgotten"][1])
    return {
        "svm_transfer": transfer,
        "svm_miss": miss,
        **{f"drift_{name}": _drift(outputs[name][0], before[name][0]) for name in ("remaining", "forgotten")},
    }


def _drift(now: np.ndarray, before: np.ndarray) -> float:
    """Mean of 1 - cosine of rows."""
    norms = np.linalg.norm(now, axis=1) * np.linalg.norm(before, axis=1)
    return float(1 - ((now * before).sum(1) / np.maximum(norms, 1e-12)).mean())
