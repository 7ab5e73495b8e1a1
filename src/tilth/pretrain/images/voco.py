"""VoCo: an encoder learns where a crop lies, by how much it is like each crop of a fixed grid over the same volume.

Notable: the region's own crops are the classes, so no labels and no other volumes are needed; the answers of one volume teach another
by the inter-volume term, in which the next volume is that of the whole batch over all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from tilth.batches.draws import uniform
from tilth.batches.images.pictures import natural
from tilth.batches.patches.crops import CropGrid, crop_keys
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.contrast import unit
from tilth.pretrain.images.heads import one
from tilth.pretrain.teacher import Teacher
from tilth.registry import Fraction, NonNegative, PositiveInt
from tilth.training.across import BatchNorm, count, gather, rank
from tilth.traits import Traits

EPS = 1e-6


class Answers(NamedTuple):
    """Of every volume's random crops (and its base crops): labels (batch, random, bases), by the student, by the teacher.

    student, teacher: (batch, bases + random, width), base crops first.
    """

    labels: Tensor
    student: Tensor
    teacher: Tensor


@method("pretrain", "voco", systems=[9])
class VoCo(Objective):
    """L = L_intra + L_inter + regulariser * L_reg, means over volumes   (arXiv 2410.09890, section 3)

    Of every volume, `grid` base crops that tile a region and `random_crops` within it are augmented apart, encoded and projected.
    y: each base crop's share of a random crop; l = relu(cos(q, b)) in [0, 1], q of the student's head, b of the teacher's.
    L_intra: `position_loss` of l and y. L_inter: the same of the student's cosines to the next volume's base crops and, for y, the
    teacher's. L_reg: the mean of relu(cos(b, b'))^2 over pairs of the student's base crops, with a gradient to the first of a pair.

    crop: sides in voxels; grid: base crops along each axis, one number: along the first two, all of the third within one crop.
    levels: layers of the encoder whose pooled outputs, side by side, are the embedding, None: its own pooled output, which of
    `conv_stages` holds all stages. head_width, head_out: of the heads, three layers, batch norms without weights or memory over
    all crops of all processes. dropout: of the embedding's numbers, for the student. momentum: of the teacher, the moving average
    of the head alone. views: augmentation, one view.

    The next volume of the whole batch's last one is its first; a batch of a single volume has no inter term. In the authors' code
    the teacher starts from weights of its own (here: a copy) and `Dropout1d` meets rows without a length and so drops whole crops
    (here: single numbers, as the paper has it). Deviates from the paper in that the encoder is whatever it is built with; its
    SwinUNETR (five maps' means, 24 times the first width) is not here, nor are the semi- and omni-supervised recipes.
    batch: pixel_values (batch, channels, *size), keys (batch,). Raises TilthError for levels, crops and grids that do not fit.
    """

    traits = Traits(
        family="pretext",
        target="which base crops a crop overlaps",
        guard="base crops pushed apart",
        positives="base crops a crop overlaps",
        negatives="base crops it does not",
        teacher=True,
    )

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        crop: PositiveInt | list[PositiveInt] = 64,
        grid: PositiveInt | list[PositiveInt] = 3,
        random_crops: PositiveInt = 2,
        levels: list[PositiveInt] | None = None,
        head_width: PositiveInt = 1024,
        head_out: PositiveInt = 1024,
        dropout: Fraction = 0.2,
        momentum: Fraction = 0.9,
        regulariser: NonNegative = 1.0,
        views: Annotated[Configured, Kind("views")] = use("views", "volumes"),
    ) -> None:
        super().__init__(model)
        config: Any = model.config
        [given] = config.inputs
        self.crops = CropGrid.of(crop, grid, len(given["size"]))
        self.random_crops, self.levels, self.views = random_crops, levels, views.build()
        self.dropout, self.momentum, self.regulariser = dropout, momentum, regulariser
        with torch.no_grad():
            width = embedding(model, torch.zeros(2, given["channels"], *self.crops.sides), levels).shape[1]
        self.head = nn.Sequential(
            nn.Linear(width, head_width, bias=False), _norm(head_width), nn.ReLU(),
            nn.Linear(head_width, head_width, bias=False), _norm(head_width), nn.ReLU(),
            nn.Linear(head_width, head_out),
        )  # fmt: skip
        self.teacher = Teacher(self.head)

    def forward(self, batch: Batch) -> Loss:
        """Mean over volumes of what their random crops lose."""
        found = self.answers(natural(batch.pixel_values), batch["keys"])
        bases = len(self.crops.bases())
        (b, q), (teacher_b, teacher_q) = (v.tensor_split([bases], 1) for v in (found.student, found.teacher))
        logits = cosines(q, teacher_b).relu()
        intra = position_loss(logits, found.labels)
        inter = torch.zeros_like(intra)
        if count(b, self.training) > 1:
            wanted = cosines(teacher_q, following(teacher_b, self.training)).relu()
            inter = position_loss(cosines(q, following(b, self.training)).relu(), wanted)
        apart = regularisation(b)
        total = (intra + inter + self.regulariser * apart).mean()
        right = found.labels.gather(2, logits.argmax(2, keepdim=True))[..., 0] == found.labels.amax(2)
        parts = {"intra": intra, "inter": inter, "regulariser": apart, "located": right.float()}
        return Loss(total, count=len(b), **{name: part.mean() for name, part in parts.items()})

    def answers(self, pixels: Tensor, keys: Tensor) -> Answers:
        """Crops of volumes (batch, channels, *size), augmented while training, as the two heads see them."""
        crops, labels = self.crops(pixels, keys, self.random_crops)
        shape = crops.shape[:2]
        each = crop_keys(keys, shape[1]).flatten()
        crops = crops.flatten(0, 1)
        if self.training:
            crops = one(self.views(crops, each), "voco")
        vectors = embedding(self.model, crops, self.levels)
        student = self.head(self.dropped(vectors, each))
        return Answers(labels, student.unflatten(0, shape), self.teacher(vectors).unflatten(0, shape))

    def dropped(self, vectors: Tensor, keys: Tensor) -> Tensor:
        """Dropout of rows (n, width) by their keys, so that a row loses the same in any batch."""
        if not self.training or not self.dropout:
            return vectors
        return vectors * (uniform(keys, "dropout", vectors.shape[1]) >= self.dropout) / (1 - self.dropout)

    def after_step(self, step: int) -> None:
        """As the authors' update within the forward pass, before the teacher is asked; safe for weights that are sharded."""
        self.teacher.follow(self.head, self.momentum)


def embedding(model: Any, crops: Tensor, levels: Sequence[int] | None) -> Tensor:
    """(n, width): the means of some layers' tokens side by side, a class token counting as one of them; None: `Features.pooled`.

    Raises TilthError where the encoder has no such layer.
    """
    if levels is None:
        pooled: Tensor = model(crops).pooled
        return pooled
    try:
        features = model(crops, layers=levels)
    except KeyError as error:
        raise TilthError(f"the encoder has no layer {error}", where="voco.levels", hint="Layers count from 1.") from None
    return torch.cat([layer.mean(1) for layer in features.layers], 1)


def cosines(crops: Tensor, bases: Tensor) -> Tensor:
    """(batch, n, m) of vectors (batch, n, width) and (batch, m, width), in float32."""
    with torch.autocast(crops.device.type, enabled=False):
        return unit(crops) @ unit(bases).mT


def position_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_pos + L_neg of each volume, (batch,); both (batch, n, bases) in [0, 1].

    L_pos = -sum y log(1 - |y - l|) / sum y; L_neg = -mean of log(1 - l) over those with y = 0; 1e-6 is added to logarithms' arguments
    and to divisors, so that no loss is infinite and a perfect one a little below 0. A soft label of exactly 0 is a negative.
    """
    positive = -(labels * torch.log(1 - (labels - logits).abs() + EPS)).sum((1, 2)) / (labels.sum((1, 2)) + EPS)
    none = (labels == 0).float()
    return positive - (none * torch.log(1 - logits + EPS)).sum((1, 2)) / (none.sum((1, 2)) + EPS)


def regularisation(bases: Tensor) -> Tensor:
    """(batch,): mean over pairs k < m of base crops (batch, bases, width) of relu(cos(b_k, b_m))^2, b_m without gradient."""
    pairs = torch.triu_indices(bases.shape[1], bases.shape[1], 1, device=bases.device)
    return cosines(bases, bases.detach())[:, pairs[0], pairs[1]].relu().square().mean(1)


def following(bases: Tensor, training: bool) -> Tensor:
    """Each volume's base crops (batch, bases, width) replaced by the next one's in the whole batch, the last one's by the first's."""
    firsts = gather(bases[:1], training)
    after = (rank() + 1) % len(firsts)
    return torch.cat([bases[1:], firsts[after : after + 1]])


def _norm(width: int) -> BatchNorm:
    return BatchNorm(width, affine=False, track_running_stats=False)
