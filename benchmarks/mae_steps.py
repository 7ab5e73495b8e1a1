"""The steps that `mae_on_gpu` compares: each side's network, optimiser and one update of the weights, eager or compiled.

Notable: all sides live side by side on one device and share the pictures, so that they can take turns.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tilth.backbones.patches import Patches
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Noise, Sample, use
from tilth.pretrain.images.mae import MAE
from tilth.training.parallel import World
from tilth.training.settings import Training
from tilth.training.update import Update

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, DECAY, CLIP = 1.5e-4, 0.05, 1.0
SIDES = ("tilth", "tilth, views", "transformers")
HOW = ("eager", "compiled")


@dataclass(frozen=True)
class Size:
    """Of the network and its pictures, and of the matrices whose product is the measure of the card."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    pixels: int = 224
    patch: int = 16
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    batch: int = 256
    matrix: int = 8192


TINY = Size(32, 2, 2, pixels=32, patch=8, decoder_width=32, decoder_depth=2, decoder_heads=2, batch=4, matrix=256)


@dataclass(frozen=True)
class Arm:
    """step: one update of the weights. loss: of the first so many pictures, never compiled."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    pixels: Tensor
    step: Callable[[], object]
    loss: Callable[[int], Tensor]

    def own(self) -> list[Tensor]:
        """What stays on the device between steps: weights, moments and pictures."""
        moments = [value for state in self.optimiser.state.values() for value in state.values()]
        return [*self.module.parameters(), *self.module.buffers(), *moments, self.pixels]


def tilth(size: Size, pixels: Tensor, views: str, compiled: bool) -> Arm:
    """As `fit` makes an objective ready and steps, in one process. pixels: bytes."""
    model = Patches(width=size.width, depth=size.depth, heads=size.heads, patch=size.patch, class_token=True).build(
        Sample(3, (size.pixels, size.pixels), MEAN, STD)
    )
    objective = MAE(
        model, decoder_width=size.decoder_width, decoder_depth=size.decoder_depth, decoder_heads=size.decoder_heads,
        views=use("views", views),
    ).to(pixels.device)  # fmt: skip
    training = Training(
        lr=LR, batch_size=size.batch, precision="bf16", clip=CLIP, compile=compiled, optimiser=use("optimiser", "adamw", weight_decay=DECAY)
    )  # fmt: skip
    update = Update(objective.train(), training, World(0, 1, pixels.device), "none", compiled)
    optimiser = training.optimiser.build(update.objective, training.lr)
    keys = torch.from_numpy(Noise(0, np.arange(size.batch)).keys()).to(pixels.device)

    def first(count: int) -> Batch:
        return Batch(tokens=count, samples=count, pixel_values=pixels[:count], keys=keys[:count])

    def loss(count: int) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return update.plain(first(count))[0]

    batch = first(size.batch)
    return Arm(objective, optimiser, pixels, lambda: update([batch], optimiser), loss)


def transformers(size: Size, pixels: Tensor, compiled: bool) -> Arm:
    """The shortest loop one would write. pixels: standardised floats."""
    config = ViTMAEConfig(
        hidden_size=size.width, num_hidden_layers=size.depth, num_attention_heads=size.heads, intermediate_size=4 * size.width,
        image_size=size.pixels, patch_size=size.patch, decoder_hidden_size=size.decoder_width,
        decoder_num_hidden_layers=size.decoder_depth, decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_width, mask_ratio=0.75, norm_pix_loss=True,
    )  # fmt: skip
    model = ViTMAEForPreTraining(config).to(pixels.device).train()  # type: ignore[arg-type]
    forward = torch.compile(model) if compiled else model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.95), weight_decay=DECAY, fused=True)

    def loss(count: int, forward: Any = model) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return forward(pixel_values=pixels[:count]).loss

    def step() -> None:
        loss(size.batch, forward).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return Arm(model, optimiser, pixels, step, loss)


def arms(size: Size, device: torch.device, compiled: Collection[str]) -> dict[tuple[str, str], Arm]:
    """By side and whether it is eager or compiled; all on the same pictures."""
    torch.manual_seed(0)
    with device:  # weights are drawn where they are needed: on a CPU that alone takes seconds
        pixels = torch.randint(0, 256, (size.batch, 3, size.pixels, size.pixels), dtype=torch.uint8)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        floats = (natural(pixels) - mean) / std
        make: dict[str, Callable[[bool], Arm]] = {
            "tilth": lambda how: tilth(size, pixels, "none", how),
            "tilth, views": lambda how: tilth(size, pixels, "mae", how),
            "transformers": lambda how: transformers(size, floats, how),
        }
        # Before any is compiled: making an `Update` that is to be compiled forgets what was.
        return {(side, HOW[how]): make[side](how) for how in (False, True) for side in SIDES if not how or side in compiled}
