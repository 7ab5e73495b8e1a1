"""Which concept ties a class to a classifier, and where in an image it lies.

Notable: concepts are directions in the model's own embedding space (or any other vectors of that width, such as those of
a text tower); a post-hoc bottleneck on their scores says which of them a class hangs on, in words a person can read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.evaluating import evaluating
from tilth.backbones.heads import embed
from tilth.errors import TilthError, nearest

Floats = NDArray[np.float32]
TOGETHER = 64  # images of which all patches are embedded at once


@dataclass(frozen=True)
class ConceptBank:
    """vectors (K, m), of any length; intercepts (K,), of an SVM with that normal, 0 for vectors of a text tower."""

    names: list[str]
    vectors: Floats
    intercepts: Floats

    def scores(self, embeddings: Floats) -> Floats:
        """s_k = (z . c_k + b_k) / |c_k|: (n, K)   (post-hoc concept bottleneck models, arXiv 2205.15480, section 3)"""
        return (embeddings @ self.vectors.T + self.intercepts) / np.linalg.norm(self.vectors, axis=1)

    def chosen(self, names: list[str]) -> ConceptBank:
        """Only these concepts. Raises TilthError for one that the bank lacks."""
        for name in names:
            if name not in self.names:
                raise TilthError(f"the concept bank has no '{name}'", hint=nearest(name, self.names))
        rows = [self.names.index(name) for name in names]
        return ConceptBank(list(names), self.vectors[rows], self.intercepts[rows])


def activation_vector(with_concept: Floats, without: Floats, *, C: float = 0.1, seed: int = 0) -> tuple[Floats, np.float32]:
    """The unit normal (m,) of a linear SVM between embeddings with and without a concept, and its intercept (CAV, arXiv 1711.11279)."""
    embeddings = np.concatenate([with_concept, without])
    truth = np.repeat([1, 0], [len(with_concept), len(without)])
    svm = LinearSVC(C=C, dual=False, class_weight="balanced", random_state=seed).fit(embeddings, truth)
    length = np.linalg.norm(svm.coef_[0])
    return (svm.coef_[0] / length).astype(np.float32), np.float32(svm.intercept_[0] / length)


def class_concepts(patches: Floats, labels: np.ndarray, *, seed: int = 0, limit: int = 2000) -> ConceptBank:
    """One concept per class: what patches of its images have and patches of the others have not.

    patches (images, places, m): embeddings of the patches of each image. limit: patches on either side, drawn at random.
    """
    random, names, vectors, intercepts = np.random.default_rng(seed), list[str](), list[Floats](), list[np.float32]()
    for label in np.unique(labels).tolist():
        sides = [patches[part].reshape(-1, patches.shape[-1]) for part in (labels == label, labels != label)]
        some = [side[random.permutation(len(side))[:limit]] for side in sides]
        vector, intercept = activation_vector(some[0], some[1], seed=seed)
        names.append(f"patches of class {label}")
        vectors.append(vector)
        intercepts.append(intercept)
    return ConceptBank(names, np.stack(vectors), np.array(intercepts, dtype=np.float32))


class Bottleneck:
    """The post-hoc concept bottleneck: an elastic-net classifier on concept scores (arXiv 2205.15480).

    strength, l1_share: lambda and alpha of the elastic net. weights (classes, K); classes (classes,).
    """

    def __init__(
        self,
        bank: ConceptBank,
        embeddings: Floats,
        labels: np.ndarray,
        *,
        strength: float = 1e-5,
        l1_share: float = 0.99,
        seed: int = 0,
    ) -> None:
        classifier = SGDClassifier(
            loss="log_loss", penalty="elasticnet", alpha=strength, l1_ratio=l1_share, max_iter=10_000, random_state=seed
        ).fit(bank.scores(embeddings), labels)
        self.bank, self.classes = bank, classifier.classes_
        self.weights = classifier.coef_ if len(self.classes) > 2 else np.concatenate([-classifier.coef_, classifier.coef_])
        self.accuracy = float(classifier.score(bank.scores(embeddings), labels))

    def influential(self, label: int, top: int = 1) -> list[int]:
        """The concepts with the greatest weights for a class, the greatest first."""
        return np.argsort(-self.row(label))[:top].tolist()

    def row(self, label: int) -> np.ndarray:
        """The weights of a class: (K,)."""
        found: np.ndarray = self.weights[np.flatnonzero(self.classes == label)[0]]
        return found

    def donor(self, label: int, concept: int) -> int:
        """The other class with the greatest weight on a concept: what the class is taken for most easily."""
        weights = np.where(self.classes == label, -np.inf, self.weights[:, concept])
        return int(self.classes[weights.argmax()])


def windows(pixels: Tensor, size: int, stride: int) -> Tensor:
    """All square patches of images (n, c, h, w), row by row: (n, places, c, size, size)."""
    cut = pixels.unfold(2, size, stride).unfold(3, size, stride)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def corners(height: int, width: int, size: int, stride: int) -> NDArray[np.int64]:
    """Top left corner (y, x) of each of these patches: (places, 2)."""
    grid = np.meshgrid(np.arange(0, height - size + 1, stride), np.arange(0, width - size + 1, stride), indexing="ij")
    return np.stack(grid, -1).reshape(-1, 2)


@torch.no_grad()
def patch_embeddings(model: nn.Module, pixels: Tensor, size: int, stride: int) -> Floats:
    """Embeddings of all patches of some images, each enlarged to the image's size: (n, places, m)."""
    patches = windows(pixels, size, stride)
    enlarged = F.interpolate(patches.flatten(0, 1), pixels.shape[2:], mode="bilinear", align_corners=False)
    with evaluating(model) as device:
        return embed(model, enlarged.to(device))[0].unflatten(0, patches.shape[:2]).float().cpu().numpy()


def similarity_map(patches: Floats, vector: Floats) -> Floats:
    """Cosine of every patch's embedding (n, places, m) with a concept (m,): (n, places)."""
    lengths = np.linalg.norm(patches, axis=-1) * np.linalg.norm(vector)
    return np.asarray(patches @ vector / np.maximum(lengths, 1e-12))


def peaks(model: nn.Module, pixels: Tensor, vector: Floats, size: int, stride: int) -> NDArray[np.int64]:
    """Top left corner of the patch of each image that is most like a concept: (n, 2)."""
    places = corners(pixels.shape[2], pixels.shape[3], size, stride)
    best = [similarity_map(patch_embeddings(model, part, size, stride), vector).argmax(1) for part in pixels.split(TOGETHER)]
    return places[np.concatenate(best)]
