"""The blocks patch encoders and decoders are made of: attention, across sequences too, and the layers around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Tokens up to which products of matrices are faster on a CPU, backwards counted, than PyTorch's fused kernel: 2.1 times at 17 tokens
# in 32 bits, 1.2 times at 65, and slower from 197 on; in 16 bits the kernel's backward pass is four times slower.
_SHORT = {torch.float32: 128, torch.bfloat16: 512, torch.float16: 512}


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; q (batch, heads, n, d), k and v (batch, heads, m, d); bias broadcasts to (batch, heads, n, m)
    and may be of truth values instead: what is attended to, in every row something.

    PyTorch's fused kernel, but for short sequences on the CPU.
    """
    if q.device.type == "cpu" and max(q.shape[-2], k.shape[-2]) <= _SHORT.get(q.dtype, 0):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias) v over heads, of one sequence. bias: (batch or 1, heads or 1, queries, tokens)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None, tail: int | None = None) -> Tensor:
        """x (batch, tokens, width) to the same. tail: only the last so many tokens ask, and only they come back."""
        if tail is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            parts = [x.shape[-1], 2 * x.shape[-1]]
            (asking, asked), (shift, others) = self.qkv.weight.split(parts), self.qkv.bias.split(parts)
            q = F.linear(x[:, -tail:], asking, shift).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, asked, others).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, self.bias(q, bias))
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def bias(self, q: Tensor, given: Tensor | None) -> Tensor | None:
        """What is added to q k^T / sqrt(d): what was given; it may depend on the queries (batch, heads, tokens, d)."""
        return given


class CrossAttention(nn.Module):
    """Queries of one sequence (batch, n, width), keys and values of another (batch, m, source)."""

    def __init__(self, width: int, heads: int, source: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(source or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        """What x reads of the source, (batch, n, width). bias: added to q k^T / sqrt(d), (batch or 1, heads or 1, n, m)."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, bias)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Leaves a branch out of whole examples while training, and scales the others up (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, ...): a branch's output, to the same."""
        if not self.training or not self.rate:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """x += mixer(norm x); x += mlp(norm x). Further arguments go to the mixer. tail: what only the last so many tokens become, which
    read all of them; the mixer is to know the word."""

    def __init__(self, width: int, mixer: nn.Module, mlp: nn.Module, *, eps: float = 1e-6, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.LayerNorm(width, eps=eps), mixer
        self.mlp_norm, self.mlp = nn.LayerNorm(width, eps=eps), mlp
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor, *given: object, tail: int | None = None) -> Tensor:
        """x (batch, tokens, width) to the same."""
        if tail is None:
            x = x + self.drop(self.mixer(self.mixer_norm(x), *given))
        else:
            x = x[:, -tail:] + self.drop(self.mixer(self.mixer_norm(x), *given, tail=tail))
        return x + self.drop(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


def attention_block(width: int, heads: int, mlp_ratio: float = 4.0, *, eps: float = 1e-6, drop_path: float = 0.0) -> Block:
    """A pre-norm transformer block."""
    return Block(width, Attention(width, heads), MLP(width, int(mlp_ratio * width)), eps=eps, drop_path=drop_path)


def initialise(module: nn.Module) -> None:
    """Xavier uniform for linear layers, zero biases, norms at 1 and 0, as MAE starts (arXiv 2111.06377). To be `apply`ed."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
