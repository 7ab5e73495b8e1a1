"""Forget a class by poisoning its images at the concept they are recognised by, relabelling them, and fine-tuning.

Notable: patch and label are separate settings, since the figures first published came from labels alone (see the
repository's note); how the class fares is measured on clean images while it is trained; retained images are used as they are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.evaluating import computing_device, evaluating
from tilth.backbones.heads import embed_all, extractor_parameters, head_of
from tilth.batches.images.labelled import ImageRows
from tilth.context import Context
from tilth.contracts import Batch, Loss, Noise, Objective, method
from tilth.errors import TilthError
from tilth.noise import hashed_uniform
from tilth.registry import Fraction, NonNegative, NonNegativeInt, PositiveInt
from tilth.unlearn.concepts import TOGETHER, Bottleneck, class_concepts, patch_embeddings, peaks
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.patches import crop, paste

Patch = Literal["localised", "centre", "random", "full", "none"]
Labels = Literal["targeted", "random", "keep"]
_WATCHED = 512  # clean images looked at while training
_EXAMINED = 1000  # images of each set whose patches the concepts are learnt from


@method("unlearn", "concept_poisoning", systems=[19, 35])
class ConceptPoisoning(Objective):
    """L = mean of -log p(label) over retained images with their labels and poisoned ones with new labels   (arXiv 2405.15662)

    `prepare` finds, per class to forget, the concept with the greatest weight in a concept bottleneck over the model's own
    embeddings (concepts: activation vectors of each class's patches) and the donor, the class that shares it most; then a
    patch of a donor's image goes into every image of the class.
    patch: 'localised' cuts and pastes where each image's patches resemble the concept most; 'centre' and 'random' paste
    (and cut) there, 'full' takes the donor's whole image, 'none' leaves images clean: with labels 'random' that is the
    baseline of random labels. size, stride: of patches, in pixels (64 and 16 of 224 published), None: 2/7 and 1/14 of the height.
    unpatched: share of the images that are relabelled and left clean, lest the patch become the sign of the donor.
    labels: 'targeted' the donor, 'random' any class, the true one too, 'keep' the true one. donor: None: found.
    train: 'head' leaves the class in the features (a probe recovers it), 'all' does not have to.
    strength, l1_share: of the bottleneck's elastic net.
    watch_every: steps between two looks at clean images to forget (0: never).

    Deviations: published figures use a text tower's concepts; here they are the model's own. An epoch passes over poisoned
    and retained images together, as published.
    batch.forget: pixel_values, labels (batch,)
    """

    trail: Tensor

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        patch: Patch = "localised",
        labels: Labels = "targeted",
        train: Literal["head", "all"] = "head",
        size: PositiveInt | None = None,
        stride: PositiveInt | None = None,
        donor: NonNegativeInt | None = None,
        unpatched: Fraction = 0.0,
        strength: NonNegative = 1e-5,
        l1_share: Fraction = 0.99,
        watch_every: NonNegativeInt = 0,
    ) -> None:
        super().__init__(model)
        self.patch, self.labels, self.size, self.stride, self.donor = patch, labels, size, stride, donor
        self.unpatched, self.strength, self.l1_share, self.watch_every = unpatched, strength, l1_share, watch_every
        if train == "head":
            for parameter in extractor_parameters(model):
                parameter.requires_grad_(False)
        self.clean: Batch | None = None
        self.register_buffer("trail", torch.tensor([-1.0, 0.0, 0.0]))  # step forgotten at (-1: never), rebounds, forgotten now

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        """Poisoned and retained images as one set; an exhibit says which concepts and donors were found."""
        forget, retain = examples.forget, examples.retain
        if not isinstance(forget, ImageRows) or not isinstance(retain, ImageRows):
            raise TilthError("'concept_poisoning' needs images to forget and images to retain", hint="Say 'batches: images'.")
        poisoned = self.poisoned(forget, retain, context)
        some = np.linspace(0, len(forget) - 1, min(_WATCHED, len(forget))).astype(int)
        self.clean = forget.batch(some, Noise(0, some))
        return PairedExamples(Joined(poisoned, retain), None)

    def forward(self, batch: Batch) -> Loss:
        output = self.model(pixel_values=batch.forget.pixel_values)
        logits = getattr(output, "logits", output)
        return Loss(F.cross_entropy(logits.float(), batch.forget.labels), count=len(batch.forget.labels))

    def poisoned(self, forget: ImageRows, retain: ImageRows, context: Context) -> ImageRows:
        """The images to forget, patched and relabelled, in their order."""
        pixels, labels, told = np.array(forget.pixels), forget.labels.copy(), []
        rows = np.arange(len(forget))
        patched = hashed_uniform(context.seed, "patched", rows) >= self.unpatched
        if self.patch != "none" or (self.labels == "targeted" and self.donor is None):
            scene = _Scene(self, forget, retain, context)
            for label in np.unique(forget.labels).tolist():
                concept, donor = scene.of(label)
                told.append([label, scene.bottleneck.bank.names[concept], donor, scene.bottleneck.accuracy])
                of_class = rows[forget.labels == label]
                if self.labels == "targeted":
                    labels[of_class] = donor
                if self.patch != "none":
                    chosen = of_class[patched[of_class]]
                    pixels[chosen] = scene.patched(chosen, concept, donor)
        elif self.labels == "targeted" and self.donor is not None:
            labels[:] = self.donor
        if self.labels == "random":
            linear = [module for module in head_of(self.model).modules() if isinstance(module, nn.Linear)]
            labels = (hashed_uniform(context.seed, "labels", rows) * linear[-1].out_features).astype(np.int64)
        if told:
            context.exhibit("table", "Concepts", columns=["class", "concept", "donor", "bottleneck accuracy"], rows=told)
        return ImageRows(pixels, labels, forget.mean, forget.std)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Look at clean images: forgotten is an accuracy of at most 1 %, a rebound one above 5 % afterwards."""
        if not self.watch_every or step % self.watch_every or self.clean is None:
            return
        self.clean = self.clean.to(self.trail.device)
        with evaluating(self.model):
            output = self.model(pixel_values=self.clean.pixel_values)
        accuracy = (getattr(output, "logits", output).argmax(1) == self.clean.labels).float().mean()
        first, rebounds, gone = self.trail.unbind()
        below, back = accuracy <= 0.01, (accuracy > 0.05) & (gone > 0)
        self.trail.copy_(
            torch.stack(
                [
                    torch.where(below & (first < 0), float(step), first),
                    rebounds + back,
                    torch.where(below, 1.0, torch.where(back, 0.0, gone)),
                ]
            )
        )

    def metrics(self) -> dict[str, float]:
        """forgotten_at: the first look with at most 1 % (-1: none), in steps; rebounds: how often it came back above 5 %."""
        first, rebounds, _ = self.trail.tolist()
        return {"forgotten_at": first, "rebounds": rebounds} if self.watch_every else {}


class _Scene:
    """The concepts of all classes under the model as it is, and where they lie in an image."""

    def __init__(self, settings: ConceptPoisoning, forget: ImageRows, retain: ImageRows, context: Context) -> None:
        self.settings, self.sets, self.seed = settings, {"forget": forget, "retain": retain}, context.seed
        self.height, self.width = forget.pixels.shape[2:]
        self.size = settings.size or max(1, round(self.height * 2 / 7))
        self.stride = settings.stride or max(1, round(self.height / 14))
        if self.size > min(self.height, self.width):
            raise TilthError(f"patches of {self.size} pixels do not fit images of {self.height} x {self.width}")
        self.device = computing_device()
        self.model = settings.model.to(self.device)
        labels = np.concatenate([forget.labels, retain.labels])
        embeddings = np.concatenate([embed_all(self.model, rows)[0] for rows in (forget, retain)])
        some = {name: np.linspace(0, len(rows) - 1, min(_EXAMINED, len(rows))).astype(int) for name, rows in self.sets.items()}
        patches = [
            patch_embeddings(self.model, part, self.size, self.stride)
            for name, chosen in some.items()
            for part in self.pixels(name, chosen).split(TOGETHER)
        ]
        seen = np.concatenate([self.sets[name].labels[chosen] for name, chosen in some.items()])
        bank = class_concepts(np.concatenate(patches), seen, seed=self.seed)
        self.bottleneck = Bottleneck(
            bank, embeddings, labels, strength=settings.strength, l1_share=settings.l1_share, seed=self.seed
        )

    def pixels(self, part: str, rows: np.ndarray) -> Tensor:
        values: Tensor = self.sets[part].batch(rows).pixel_values
        return values.to(self.device)

    def of(self, label: int) -> tuple[int, int]:
        """The concept a class hangs on, and its donor, a class of which images are retained."""
        concept = self.bottleneck.influential(label)[0]
        donor = self.settings.donor if self.settings.donor is not None else self.bottleneck.donor(label, concept)
        if donor == label or donor not in self.sets["retain"].labels:
            raise TilthError(f"class {donor} cannot be the donor of class {label}: it is not among what is retained")
        return concept, donor

    def patched(self, chosen: np.ndarray, concept: int, donor: int) -> np.ndarray:
        """Images `chosen` of the forget set, each with a patch of an image of the donor drawn at random."""
        donors = np.flatnonzero(self.sets["retain"].labels == donor)
        given = donors[(hashed_uniform(self.seed, "donor", chosen) * len(donors)).astype(int)]
        images = self.sets["retain"].pixels[given]
        if self.settings.patch == "full":
            return images
        target, source = self.places("forget", chosen, concept), self.places("retain", given, concept)
        return paste(self.sets["forget"].pixels[chosen], crop(images, source, self.size), target)

    def places(self, part: str, rows: np.ndarray, concept: int) -> np.ndarray:
        """Where the patch is in images of a set: top left corner (rows, 2)."""
        room = np.array([self.height - self.size, self.width - self.size])
        if self.settings.patch == "centre":
            return np.broadcast_to(room // 2, (len(rows), 2))
        if self.settings.patch == "random":
            return (hashed_uniform(self.seed, f"place in {part}", rows, (2,)) * (room + 1)).astype(int)
        vector = self.bottleneck.bank.vectors[concept]
        return peaks(self.model, self.pixels(part, rows), vector, self.size, self.stride)


class Joined:
    """Poisoned images, then retained ones, as one set of examples."""

    def __init__(self, poisoned: ImageRows, retain: ImageRows) -> None:
        self.poisoned, self.retain = poisoned, retain

    def __len__(self) -> int:
        return len(self.poisoned) + len(self.retain)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        first = indices < len(self.poisoned)
        parts = [self.poisoned.batch(indices[first]), self.retain.batch(indices[~first] - len(self.poisoned))]
        order = torch.from_numpy(np.argsort(np.argsort(~first, kind="stable"), kind="stable"))
        joined = {name: torch.cat([part[name] for part in parts])[order] for name in ("pixel_values", "labels")}
        return Batch(tokens=len(indices), samples=len(indices), **joined)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Rows of the forget corpus, then of the retain corpus counted on from its end."""
        return [np.array([index]) for index in np.asarray(indices).tolist()]
