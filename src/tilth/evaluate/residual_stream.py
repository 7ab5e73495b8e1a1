"""How large the residual stream of an encoder grows from block to block."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer

from tilth.backbones.blocks import Block
from tilth.backbones.evaluating import computing_device
from tilth.backbones.folder import load
from tilth.context import Context
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method, use
from tilth.errors import TilthError
from tilth.registry import PositiveInt


@method("benchmark", "residual_stream", systems=[52])
class ResidualStream(Benchmark):
    """Root mean square of every block's output, over tokens and channels of some pictures   (arXiv 2111.09883, figure 2)

    data: pictures; examples: how many of them, from the first on. Metrics: first and last (of the first and the last block), and
    growth, last / first. The curve over blocks is in the report.
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        examples: PositiveInt = 200,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "images"),
    ) -> None:
        self.data, self.examples, self.batches = data, examples, batches

    @torch.inference_mode()
    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the model has no residual blocks that are known here."""
        device = computing_device()
        network: nn.Module = load(model).model
        network = network.to(device)
        rows = self.batches.build().build(context.corpus(self.data), None, context)
        indices = np.arange(min(self.examples, len(rows)))
        sizes = block_sizes(network, rows.batch(indices, Noise(0, indices)).to(device).pixel_values)
        context.exhibit(
            "curves", "Residual stream", series={"RMS": [[float(n), size] for n, size in enumerate(sizes, 1)]},
            x="block", y="root mean square", log=True,
        )  # fmt: skip
        return Scores({"first": sizes[0], "last": sizes[-1], "growth": sizes[-1] / max(sizes[0], 1e-12)})


def block_sizes(network: nn.Module, pixel_values: torch.Tensor) -> list[float]:
    """Root mean square of each block's output, in order."""
    found: list[torch.Tensor] = []

    def note(_: nn.Module, given: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).float().square().mean().sqrt())

    blocks = [module for module in network.modules() if isinstance(module, (Block, Swinv2Layer))]
    if not blocks:
        raise TilthError(f"{type(network).__name__} has no residual blocks that are known", hint="Use 'patches' or 'swin_v2'.")
    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        network(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found).tolist()
