"""FILA: LoRA adapters that start as the part of the weights which matters to the forget set.

Notable: what the adapters take over is taken out of the frozen weights, so the function is unchanged at the start; the residual
lies in the model and in its checkpoints, and folding adds the adapters to it, never to the original. Row weights do not depend
on the rank and are kept for all of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tilth.backbones.fingerprint import fingerprint
from tilth.context import Context
from tilth.contracts import Reparametrisation, method
from tilth.errors import TilthError
from tilth.registry import Fraction, Positive, PositiveInt
from tilth.unlearn import fisher as fisher_module
from tilth.unlearn.fisher import fisher, one_pass, row_weights
from tilth.unlearn.lora import NAME, attach, fold, lora_layers
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.reference import examples_fingerprint

EPSILON = 1e-5


@method("adapter", "fila", systems=[22])
class Fila(Reparametrisation):
    """W x -> (W - g B* A*) x + g B A x, with B, A starting at B*, A*   (arXiv 2408.06621, section 3.3)

    B*, A*: the best approximation of rank `rank` to W when output row i weighs w_i, min |diag(w) (W - g B A)|_F; g = alpha / rank;
    w as in `fisher.row_weights`, from one pass over the forget set and the retain examples paired with it.

    alpha: twice the rank if None. dropout, targets: as in 'lora'. fisher_batch: examples whose gradients are squared together;
    1 is the Fisher information per sample. offload: keep the sums of squares on the CPU.

    Deviates from the official code in an exact singular value decomposition, always in float32, where it draws a random one.
    """

    def __init__(
        self,
        *,
        rank: PositiveInt = 8,
        alpha: Positive | None = None,
        dropout: Fraction = 0.0,
        targets: tuple[str, ...] = (),
        fisher_batch: PositiveInt = 4,
        offload: bool = False,
    ) -> None:
        self.rank, self.alpha, self.dropout, self.targets = rank, 2.0 * rank if alpha is None else alpha, dropout, targets
        self.fisher_batch, self.offload = fisher_batch, offload
        self.trainable: list[nn.Parameter] = []
        self.before = ""

    def apply(self, module: nn.Module) -> None:
        """LoRA layers that do nothing yet; `prepare` starts them."""
        self.before = fingerprint(module)
        self.trainable = attach(module, self.rank, self.alpha, self.dropout, self.targets)

    def prepare(self, model: nn.Module, examples: PairedExamples, context: Context) -> None:
        if examples.retain is None:
            raise TilthError(
                "FILA compares what matters to the forget set with what matters to the retain set, and there is none",
                hint="Give a retain set, with a retain term, or use the adapter 'lora'.",
            )
        layers = dict(lora_layers(model))
        base = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        if not all(weight.is_floating_point() for weight in base.values()):
            raise TilthError(
                "FILA splits the weights, and these are quantised", hint="Load the model unquantised, or use 'lora'."
            )
        if any(weight.dtype != torch.float32 for weight in base.values()):
            context.progress.say("FILA: the weights are not in float32, so what is left of them is rounded")
        weights = self.row_weights(model, base, examples, context)
        for name, layer in layers.items():
            start(layer, weights[name])

    def row_weights(
        self, model: nn.Module, base: dict[str, nn.Parameter], examples: PairedExamples, context: Context
    ) -> dict[str, Tensor]:
        """w (out,) of every layer, from the cache if it was computed before."""
        assert examples.retain is not None
        layers = dict(lora_layers(model))

        def make(folder: Path) -> None:
            found = [
                fisher(model, base, one_pass(examples, self.fisher_batch, context.seed, part), offload=self.offload)
                for part in ("forget", "retain")
            ]
            w = {name: row_weights(*(part[name] for part in found), transposed=layers[name].fan_in_fan_out) for name in base}
            save_file({name: value.cpu().contiguous() for name, value in w.items()}, folder / "weights.safetensors")

        parts = {
            "model": self.before,
            "layers": sorted(base),
            "forget": examples_fingerprint(examples.forget),
            "retain": examples_fingerprint(examples.retain),
            "together": self.fisher_batch,
            "seed": context.seed,
            "code": hashlib.sha256(Path(fisher_module.__file__).read_bytes()).hexdigest(),
        }
        return load_file(context.cache("fisher", parts, make) / "weights.safetensors")

    def fold(self, module: nn.Module) -> None:
        fold(module, self.trainable)


@torch.no_grad()
def start(layer: Any, weights: Tensor) -> None:
    """Move the approximation of the weight of `layer` (peft's) into its adapter; weights: w (out,)."""
    weight, scale = layer.get_base_layer().weight, layer.scaling[NAME]
    full = (weight.t() if layer.fan_in_fan_out else weight).float()
    a, b = factors(full, weights.to(full.device), layer.r[NAME], scale)
    residual = full - scale * b @ a
    weight.copy_(residual.t() if layer.fan_in_fan_out else residual)
    layer.lora_A[NAME].weight.copy_(a)
    layer.lora_B[NAME].weight.copy_(b)


def factors(weight: Tensor, rows: Tensor, rank: int, scale: float, *, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) with scale * B A closest to `weight` (out, in) when row i weighs rows_i (out,).

    diag(rows) W = U S V^T; A = (V sqrt(S / scale))^T, B = diag(1 / (rows + epsilon)) U sqrt(S / scale), the first `rank` of each.
    Beyond the rank a weight can have, both are filled up with zeros.
    """
    u, s, v = torch.linalg.svd(rows[:, None] * weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root / (rows[:, None] + epsilon)
    missing = rank - len(root)
    return nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b, (0, missing))
