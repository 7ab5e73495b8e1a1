"""I-JEPA: what a teacher makes of a few blocks of a picture, predicted from the rest."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.patches import PatchEncoder
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import pick
from tilth.batches.patches.multi_block import MultiBlock, multi_block
from tilth.batches.patches.patchify import grid_of
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.heads import one
from tilth.pretrain.images.predictor import Predictor
from tilth.pretrain.teacher import Teacher, momentum
from tilth.registry import Fraction, PositiveInt
from tilth.traits import Traits


@method("pretrain", "i_jepa", systems=[88])
class IJEPA(Objective):
    """L = mean over the patches of all target blocks of smooth_l1(g(f(context), position), LN(f'(x)))   (arXiv 2301.08243)

    f encodes the context block alone, the teacher f' the whole picture, g is a narrow transformer that is asked for one block at a
    time. targets: number of blocks; target_scale, aspect, context_scale: see `multi_block`. loss: 'smooth_l1' as in the official
    code, or 'l2', the paper's equation 1. momentum: of the teacher, rising to 1 over `momentum_steps` (along half a cosine where
    the official code has a line), or constant without. predictor_width, predictor_depth, predictor_heads: of g, which is dropped
    afterwards. views: augmentation. The teacher is kept, as in the paper.
    batch: pixel_values (batch, channels, height, width), keys (batch,)
    """

    traits = Traits(
        family="joint-embedding prediction",
        target="the teacher's features of blocks",
        guard="predictor and moving average",
        masking="several blocks, hidden patches not encoded",
        teacher=True,
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        targets: PositiveInt = 4,
        target_scale: tuple[Fraction, Fraction] = (0.15, 0.2),
        aspect: tuple[Fraction, float] = (0.75, 1.5),
        context_scale: tuple[Fraction, Fraction] = (0.85, 1.0),
        loss: Literal["smooth_l1", "l2"] = "smooth_l1",
        momentum: Fraction = 0.996,
        momentum_steps: PositiveInt | None = None,
        predictor_width: PositiveInt = 384,
        predictor_depth: PositiveInt = 6,
        predictor_heads: PositiveInt = 12,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        [given] = model.config.inputs
        if given.get("groups"):
            raise TilthError("blocks of patches are drawn for channels embedded together", where="backbone.groups")
        self.targets, self.target_scale, self.aspect, self.context_scale = targets, target_scale, aspect, context_scale
        self.loss, self.momentum, self.momentum_steps, self.views = loss, momentum, momentum_steps, views.build()
        self.teacher = Teacher(model)
        self.predictor = Predictor(model.config.hidden_size, width=predictor_width, depth=predictor_depth, heads=predictor_heads)

    @property
    def kept(self) -> nn.Module:
        """The teacher."""
        return self.teacher.network

    def forward(self, batch: Batch) -> Loss:
        """Mean over the patches of all targets, which it counts."""
        pixels = one(self.views(natural(batch.pixel_values), batch["keys"]), "i_jepa")
        grid = grid_of(pixels.shape[2:], self.model.embedding(pixels).patch)
        blocks = multi_block(
            batch["keys"], grid,
            targets=self.targets, scale=self.target_scale, aspect=self.aspect, context_scale=self.context_scale,
        )  # fmt: skip
        wanted, predicted = self.wanted(pixels, blocks), self.predicted(pixels, blocks, grid).float()
        # of what the teacher says of each picture's first block: it is the targets that collapse
        told = signs(self, wanted.unflatten(0, (len(pixels), -1))[:, 0].mean(1))
        errors = F.mse_loss if self.loss == "l2" else F.smooth_l1_loss
        if blocks.valid is None:
            return Loss(errors(predicted, wanted), count=blocks.targets.numel(), **told)
        valid, count = blocks.valid.flatten(0, 1), blocks.valid.sum()
        each = errors(predicted, wanted, reduction="none").mean(-1)
        return Loss(torch.where(valid, each, 0).sum() / count, count=count, **told)

    def wanted(self, pixels: Tensor, blocks: MultiBlock) -> Tensor:
        """The teacher's normalised tokens of the targets: (batch * targets, patches of a target, width), target by target."""
        tokens = self.teacher(pixels).tokens.float()
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return pick(tokens, blocks.targets.flatten(1)).unflatten(1, blocks.targets.shape[1:]).flatten(0, 1)

    def predicted(self, pixels: Tensor, blocks: MultiBlock, grid: tuple[int, ...]) -> Tensor:
        """The student's predictions of `wanted`."""
        seen = self.model(pixels, kept=blocks.context).tokens
        positions = sincos(coordinates(grid).to(seen), self.predictor.width)[None]
        times = blocks.targets.shape[1]
        places = pick(positions, blocks.context).repeat_interleave(times, 0)
        queries = pick(positions, blocks.targets.flatten(0, 1))
        valid = None if blocks.valid is None else blocks.valid.flatten(0, 1)
        predicted: Tensor = self.predictor(seen.repeat_interleave(times, 0), places, queries, valid)
        return predicted

    def after_step(self, step: int) -> None:
        """The teacher follows."""
        self.teacher.follow(self.model, momentum(step, self.momentum_steps, self.momentum))
