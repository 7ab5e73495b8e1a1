"""How large a network is, what a token costs, and which size suits a time budget.

Notable: the suggestion follows compute-optimal training (arXiv 2203.15556: about 20 tokens per parameter) and never
asks for more passes over the data than help (arXiv 2305.16264: about 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tilth.backbones.text import CausalLM
from tilth.errors import TilthError

TOKENS_PER_PARAMETER = 20.0
PASSES = 4.0
UTILISATION = 0.5  # of the machine's matmul peak, for networks this small
_WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)


def parameters(model: nn.Module) -> int:
    """Numbers that are trained, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def flops_per_token(parameters: int, *, depth: int, width: int, length: int) -> float:
    """Floating-point operations per token of one training step, forward and backward: 6 N + 12 L H Q T.

    PaLM (arXiv 2204.02311), appendix B: N weights that multiply (an input embedding that is not tied does not), L layers,
    H Q = width, T = length. Causal attention is counted in full, as there.
    """
    return 6.0 * parameters + 12.0 * depth * width * length


@dataclass(frozen=True)
class Suggestion:
    """A network and how far to train it. parameters: weights without the embedding's rows; why: one sentence."""

    backbone: CausalLM
    parameters: int
    tokens: int
    why: str


def suggest(
    tokens_available: int, seconds: float, flops_per_second: float, *, vocabulary: int = 8192, length: int = 256
) -> Suggestion:
    """The causal language model to train in `seconds` on a machine of `flops_per_second` (its measured matmul peak).

    The largest that still sees 20 tokens per parameter in that time, without going over the data more than 4 times; the
    smallest there is when none does.
    """
    if tokens_available < 1 or seconds <= 0 or flops_per_second <= 0:
        raise TilthError(f"no size suits {tokens_available} tokens, {seconds} seconds and {flops_per_second} FLOP/s")
    best: tuple[CausalLM, int, float] | None = None
    for width in _WIDTHS:
        backbone = shaped(width, length)
        weights = count(backbone, vocabulary)
        cost = flops_per_token(weights, depth=backbone.depth, width=width, length=length)
        in_time = seconds * flops_per_second * UTILISATION / cost
        seen = min(in_time, PASSES * tokens_available)
        if best is None or seen >= TOKENS_PER_PARAMETER * weights:
            best = backbone, weights, in_time
    assert best is not None
    backbone, weights, in_time = best
    tokens = int(in_time)
    passes = tokens / tokens_available
    why = (
        f"width {backbone.width}, depth {backbone.depth} ({weights / 1e6:.1f}M parameters): about {tokens / 1e6:.1f}M tokens "
        f"in {seconds / 60:.0f} min, {tokens / weights:.0f} per parameter, {passes:.1f} passes over the data"
    )
    return Suggestion(backbone, weights, tokens, why)


def shaped(width: int, length: int) -> CausalLM:
    """The usual proportions: heads of 32 to 128, depth growing with the width (4 at 256, 12 at 768)."""
    return CausalLM(
        width=width,
        depth=max(2, round(width / 64)),
        heads=max(2, width // (32 if width < 256 else 64)),
        context=max(length, 1024 if width >= 512 else 512),
    )


def count(backbone: CausalLM, vocabulary: int) -> int:
    """Weights of the network for a vocabulary, without building it."""
    w, head = backbone.width, backbone.width // backbone.heads
    attention = 2 * w * w + 2 * w * backbone.kv_heads * head
    layer = attention + 3 * w * backbone.mlp + 2 * w
    return backbone.depth * layer + w + vocabulary * w * (1 if backbone.tie else 2)


def settings_of(backbone: CausalLM) -> dict[str, int | float | bool]:
    """The settings that make this network, as a recipe writes them."""
    names = ("width", "depth", "heads", "kv_heads", "mlp", "context", "tie", "rope_theta")
    return {name: getattr(backbone, name) for name in names}
