"""How large a network is, what a token costs, and which size suits a time budget.

Notable: the suggestion follows compute-optimal training (arXiv 2203.15556: about 20 tokens per parameter) and counts
repeated data for what it is worth (arXiv 2305.16264); an embedding of rare words is not counted as network.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from tilth.backbones.text import CausalLM
from tilth.errors import TilthError

TOKENS_PER_PARAMETER = 20.0
HALF_LIFE = 15.4  # R*: passes after which repeating a token has lost most of its worth
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
    """Settings of a `causal_lm` and how far to train it. parameters: all weights; why: one sentence for the user."""

    width: int
    depth: int
    heads: int
    parameters: int
    tokens: int
    why: str

    @property
    def backbone(self) -> CausalLM:
        """The network, to be built with a tokeniser."""
        return CausalLM(width=self.width, depth=self.depth, heads=self.heads)


def suggest(
    tokens_available: float, seconds: float, flops_per_second: float, *, vocabulary: int = 8192, length: int = 256
) -> Suggestion:
    """The causal language model to train in `seconds` on a machine of `flops_per_second` (its measured matmul peak).

    The largest that still sees 20 tokens per weight outside its embedding in that time, repeated tokens counting less the
    more often they were seen; the smallest there is when none does.
    """
    if tokens_available < 1 or seconds <= 0 or flops_per_second <= 0:
        raise TilthError(f"no size suits {tokens_available:.0f} tokens, {seconds} seconds and {flops_per_second} FLOP/s")
    chosen, in_time = shaped(_WIDTHS[0]), 0.0
    for width in _WIDTHS:
        backbone = shaped(width)
        cost = flops_per_token(count(backbone, vocabulary), depth=backbone.depth, width=width, length=length)
        tokens = seconds * flops_per_second * UTILISATION / cost
        if width == _WIDTHS[0] or worth(tokens, tokens_available) >= TOKENS_PER_PARAMETER * count(backbone, 0):
            chosen, in_time = backbone, tokens
    weights = count(chosen, vocabulary)
    why = (
        f"A network of width {chosen.width} and depth {chosen.depth} ({weights / 1e6:.1f}M weights) reads about "
        f"{in_time / 1e6:.1f}M tokens in {seconds / 60:.3g} minutes here: {in_time / tokens_available:.2g} times the data."
    )
    return Suggestion(chosen.width, chosen.depth, chosen.heads, weights, int(in_time), why)


def worth(tokens: float, available: float) -> float:
    """How many fresh tokens `tokens` drawn from `available` are worth: arXiv 2305.16264, equation 5, with R* = 15.4."""
    repeats = max(tokens / available - 1, 0.0)
    return min(tokens, available) + available * HALF_LIFE * (1 - math.exp(-repeats / HALF_LIFE))


def machine_flops(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of float32 matrix products of `size` on this machine's CPU: the best of a few, after one to warm up."""
    left, right = torch.ones(size, size), torch.ones(size, size)
    out = left @ right
    fastest = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def shaped(width: int) -> CausalLM:
    """The usual proportions: heads of 32, of 64 from a width of 256 on, and one layer per 64 of width, two at least."""
    return CausalLM(width=width, depth=max(2, width // 64), heads=width // (32 if width < 256 else 64))


def count(backbone: CausalLM, vocabulary: int) -> int:
    """Weights of the network for a vocabulary, without building it; a vocabulary of 0 counts no embedding."""
    w, head = backbone.width, backbone.width // backbone.heads
    attention = 2 * w * w + 2 * w * backbone.kv_heads * head
    layer = attention + 3 * w * backbone.mlp + 2 * w
    return backbone.depth * layer + w + vocabulary * w * (1 if backbone.tie else 2)
