"""data2vec: what a teacher makes of a whole picture, averaged over its upper layers, predicted from a masked one."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import pick
from tilth.batches.patches.multi_block import block_wise
from tilth.batches.patches.patchify import grid_of
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.heads import one
from tilth.pretrain.teacher import Teacher, momentum
from tilth.registry import Fraction, Positive, PositiveInt
from tilth.traits import Traits


@method("pretrain", "data2vec", systems=[88])
class Data2Vec(Objective):
    """L = mean over hidden patches of smooth_l1(W f(masked x) + b, mean over the top K layers of LN(f'_k(x)))   (arXiv 2202.03555)

    A layer's output is that of its whole block, residual included, as in the official code for images; LN has no weights. The hidden
    patches, floor(mask_ratio * patches), lie in blocks of `smallest_block` or more (`block_wise`). layers: K. beta: from
    which error on the loss is linear. momentum: of the teacher, rising to `momentum_end` over `momentum_steps` (along half a cosine
    where the paper has a line), or constant without. views: augmentation.
    batch: pixel_values (batch, channels, height, width), keys (batch,)
    """

    traits = Traits(
        family="joint-embedding prediction",
        target="the teacher's upper layers of the whole picture",
        guard="normalised targets and moving average",
        masking="blocks, filled with a learned token",
        teacher=True,
    )
    model: PatchEncoder

    def __init__(
        self,
        model: PatchEncoder,
        /,
        *,
        mask_ratio: Fraction = 0.6,
        smallest_block: PositiveInt = 16,
        layers: PositiveInt = 6,
        beta: Positive = 2.0,
        momentum: Fraction = 0.9998,
        momentum_end: Fraction = 0.9999,
        momentum_steps: PositiveInt | None = None,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        depth, width = model.config.num_hidden_layers, model.config.hidden_size
        [given] = model.config.inputs
        if given.get("groups"):
            raise TilthError("blocks of patches are drawn for channels embedded together", where="backbone.groups")
        if layers > depth:
            raise TilthError(
                f"the model has {depth} layers, not {layers}", where="layers", hint=f"Average {depth} or fewer; half is usual."
            )
        self.mask_ratio, self.smallest_block, self.beta, self.views = mask_ratio, smallest_block, beta, views.build()
        self.layers = tuple(range(depth - layers + 1, depth + 1))
        self.momentum, self.momentum_end, self.momentum_steps = momentum, momentum_end, momentum_steps
        self.teacher = Teacher(model)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.head = nn.Linear(width, width)

    def forward(self, batch: Batch) -> Loss:
        """Mean over pictures of the mean over their hidden patches."""
        pixels = one(self.views(natural(batch.pixel_values), batch["keys"]), "data2vec")
        height, width = grid = grid_of(pixels.shape[2:], self.model.embedding(pixels).patch)
        mask = block_wise(batch["keys"], grid, int(self.mask_ratio * height * width), smallest=self.smallest_block)
        features = self.model(pixels, hidden=mask.where(), fill=self.token)
        predicted = self.head(pick(features.tokens, mask.hidden)).float()
        loss = F.smooth_l1_loss(predicted, pick(self.targets(pixels), mask.hidden), beta=self.beta)
        return Loss(loss, count=len(pixels), **signs(self, features.pooled))

    def targets(self, pixels: Tensor) -> Tensor:
        """(batch, tokens, width): the average of the teacher's normalised upper layers, of the whole picture."""
        outputs = [self._of_patches(output.float()) for output in self.teacher(pixels, layers=self.layers).layers]
        return torch.stack([F.layer_norm(output, output.shape[-1:]) for output in outputs]).mean(0)

    def _of_patches(self, tokens: Tensor) -> Tensor:
        """Without the class token: the middle one between Mamba blocks, else the first."""
        if not self.model.config.class_token:
            return tokens
        place = (tokens.shape[1] - 1) // 2 if self.model.config.mixer == "mamba" else 0
        return torch.cat([tokens[:, :place], tokens[:, place + 1 :]], 1)

    def after_step(self, step: int) -> None:
        """The teacher follows."""
        rate = momentum(step, self.momentum_steps, self.momentum, self.momentum_end)
        self.teacher.follow(self.model, rate)
