"""SimMIM: blocks of a picture are replaced by a mask token before the encoder, one linear layer rebuilds their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.batches.images.pictures import natural
from tilth.batches.patches.masks import Mask, blocks
from tilth.batches.patches.patchify import grid_of, unpatchify
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.pretrain.images.collapse import signs
from tilth.pretrain.images.heads import one
from tilth.registry import Fraction, PositiveInt
from tilth.traits import Traits


@method("pretrain", "simmim", systems=[52])
class SimMIM(Objective):
    """L = sum over hidden pixels and channels of |x - x^| / (hidden pixels + 1e-5) / channels   (arXiv 2111.09886)

    mask_block: side in pixels of the cubes that are hidden, ceil(mask_ratio * cubes) of them. local: side in pixels, odd, of the
    window in which targets are normalised (47 in Swin V2's recipe; `locally_normalised`); None: targets are standardised pixels.
    views: augmentation. Works with any encoder that takes `hidden` and `fill`; all patches are encoded, so hierarchical ones do.
    batch: pixel_values (batch, channels, *size), keys (batch,)
    """

    traits = Traits(
        family="masked reconstruction",
        target="pixels",
        guard="fixed target",
        masking="random blocks, filled with a learned token",
    )

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        mask_ratio: Fraction = 0.6,
        mask_block: PositiveInt = 32,
        local: PositiveInt | None = None,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        config: Any = model.config
        if len(config.inputs) != 1 or len(config.inputs[0].get("groups") or ()) > 1:
            raise TilthError("SimMIM trains an encoder of one kind of input, its channels embedded together", where="simmim")
        [given] = config.inputs
        self.patch, self.stride = tuple(given["patch"]), tuple(given.get("stride") or given["patch"])
        if len(set(self.patch)) > 1 or mask_block % self.patch[0]:
            raise TilthError(
                f"blocks of {mask_block} pixels are not made of patches of {'x'.join(map(str, self.patch))}",
                where="simmim.mask_block",
                hint="Use a multiple of the patch's side.",
            )
        if local is not None and local % 2 == 0:
            raise TilthError(f"a window of {local} pixels has no middle", where="simmim.local", hint="Use an odd number.")
        self.mask_ratio, self.block, self.local, self.views = mask_ratio, mask_block // self.patch[0], local, views.build()
        self.token = nn.Parameter(torch.empty(given.get("width") or config.hidden_size))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.decoder = nn.Linear(config.hidden_size, given["channels"] * prod(self.stride))

    def mask(self, keys: Tensor, size: Sequence[int]) -> Mask:
        """Raises TilthError where the blocks do not divide the picture."""
        grid_of(size, [side * self.block for side in self.patch])
        return blocks(keys, grid_of(size, self.patch), self.block, self.mask_ratio)

    def decode(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Tokens of the last map as pixels (batch, channels, *size): a 1x1 convolution and a pixel shuffle."""
        return unpatchify(self.decoder(tokens), grid_of(size, self.stride), self.stride)

    def forward(self, batch: Batch) -> Loss:
        """Mean over hidden pixels of all pictures."""
        pixels = one(self.views(natural(batch.pixel_values), batch["keys"]), "simmim")
        size = pixels.shape[2:]
        targets = self.model.embedding(pixels).standardised(pixels)  # type: ignore[operator]
        if self.local is not None:
            targets = locally_normalised(targets, self.local)
        hidden = self.mask(batch["keys"], size).where()
        features = self.model(pixels, hidden=hidden, fill=self.token)
        loss = masked_l1(self.decode(features.tokens, size).float(), targets, hidden, self.patch)
        return Loss(loss, count=len(pixels), **signs(self, features.pooled))


def masked_l1(predicted: Tensor, targets: Tensor, hidden: Tensor, patch: Sequence[int]) -> Tensor:
    """Of pixels (batch, channels, *size) where patches are hidden (batch, patches): their number, plus 1e-5, and that of channels
    divide the sum, as in the authors' code."""
    weight = hidden.reshape(len(hidden), *grid_of(targets.shape[2:], patch))
    for axis, side in enumerate(patch, 1):
        weight = weight.repeat_interleave(side, axis)
    return ((predicted - targets).abs() * weight[:, None]).sum() / (weight.sum() + 1e-5) / targets.shape[1]


def locally_normalised(values: Tensor, window: int, eps: float = 1e-6) -> Tensor:
    """(x - mean) / sqrt(var + eps), mean and unbiased variance of each channel in a cube of `window` pixels around every pixel.

    What lies outside the picture is not counted (arXiv 2111.09883, appendix; `norm_targets` of the authors' code). values (batch,
    channels, *size); axis by axis, so the cost grows with the window's side and not with its area.
    """
    axes = tuple(range(2, values.ndim))
    values = values - values.mean(axes, keepdim=True)  # what follows does not depend on it, but for rounding
    count = torch.ones((), device=values.device)
    for axis in axes:
        at = torch.arange(values.shape[axis], device=values.device)
        reach = (at + window // 2).clamp(max=len(at) - 1) - (at - window // 2).clamp(min=0) + 1
        count = count * reach.reshape(-1, *[1] * (values.ndim - 1 - axis))
    mean, square = (_pooled(power, axes, window) for power in (values, values.square()))
    variance = (square - mean.square()).clamp(min=0) * count / (count - 1).clamp(min=1)
    return (values - mean) / (variance + eps).sqrt()


def _pooled(values: Tensor, axes: Sequence[int], window: int) -> Tensor:
    """Means over cubes, of what there is in them."""
    for axis in axes:
        lines = values.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        pooled = F.avg_pool1d(flat, window, stride=1, padding=window // 2, count_include_pad=False)
        values = pooled.reshape(lines.shape).movedim(-1, axis)
    return values
