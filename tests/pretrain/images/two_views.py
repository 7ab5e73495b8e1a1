"""What the tests of objectives that compare views share: a tiny encoder, pictures, and ways to hold the views still."""

import torch
from torch import Tensor

from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Objective, Sample, use

WIDTH = 16


def encoder(seed: int = 0) -> PatchEncoder:
    """Of colour pictures of 8 x 8 pixels."""
    torch.manual_seed(seed)
    sample = Sample(3, (8, 8), (0.5,) * 3, (0.25,) * 3)
    return use("backbone", "patches", width=WIDTH, depth=1, heads=2, patch=4).build().build(sample)


def constant(model: PatchEncoder) -> PatchEncoder:
    """The same output for every picture."""
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(1.0)
    return model


def pictures(count: int, seed: int = 0) -> Batch:
    """Noise, as bytes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    keys = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    return Batch(tokens=count, samples=count, pixel_values=pixels, keys=keys)


def drawn(objective: Objective, batch: Batch) -> list[Tensor]:
    """The views the objective will see."""
    return objective.views(natural(batch.pixel_values), batch["keys"])


def swapped(objective: Objective, batch: Batch) -> Tensor:
    """The loss with the first two views in each other's place; the objective is changed for good."""
    first, second, *others = drawn(objective, batch)
    objective.views = lambda pixels, keys: [second, first, *others]
    return objective(batch).total


def without_gradient(module: torch.nn.Module) -> bool:
    """Whether nothing in a teacher has or wants a gradient."""
    return all(parameter.grad is None and not parameter.requires_grad for parameter in module.parameters())
