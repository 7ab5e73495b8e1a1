"""Selective state-space recurrences in linear time and memory: Mamba-1's selective scan and Mamba-2's state-space duality.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t . h_t + D u_t,    h_0 = 0

Notable: A is negative, so every factor is at most 1 and is made from a *sum over the very steps it spans*; nothing divides by
a decay and nothing overflows. The sequence is cut into chunks and those into segments, so that what is as large as the states
(batch x length x channels x state) exists for one segment at a time, forward and backward. States are float32 (float64 for
float64 inputs), whatever the inputs and autocast. With `mamba_ssm` installed, tensors on CUDA go through its fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

# State elements held at once: few enough to stay in a CPU's cache, enough to fill a GPU.
_TOGETHER = {"cpu": 2**19, "cuda": 2**26}
# Steps taken one after the other while all chunks of a segment go side by side; a GPU has more chunks and dearer launches.
_STEPS = {"cpu": 32, "cuda": 128}


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, chunk: int | None = None
) -> Tensor:
    """Mamba-1's selective scan (arXiv 2312.00752, algorithm 2, with its simplified discretisation of B): a state per channel.

    u, delta (batch, length, channels): inputs and step sizes (after softplus). A (channels, state), negative. B, C (batch,
    length, state). D (channels,): skip connection. Gives (batch, length, channels) in u's dtype. chunk: steps that are taken
    one after the other; the result does not depend on it. Differentiable once.
    """
    kernel = _fused("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", u)
    if kernel is not None:
        dtype = _common(u, delta, B, C)
        inputs, steps, into, out_of = (one.to(dtype).mT.contiguous() for one in (u, delta, B, C))
        y = kernel(inputs, steps, A.float(), into, out_of, None if D is None else D.float())
        return y.mT.to(u.dtype)
    y, _ = _scan(u, delta, A, B, C, chunk or _STEPS.get(u.device.type, _STEPS["cuda"]))
    return (y if D is None else y + u * D.to(y.dtype)).to(u.dtype)


def state_space_dual(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, chunk: int = 64
) -> Tensor:
    """Mamba-2's state-space duality (arXiv 2405.21060, section 6): one decay per head, so that a chunk is matrix products.

    x (batch, length, heads, head_dim), delta (batch, length, heads), A (heads,), negative. B, C (batch, length, groups, state):
    heads are split evenly over groups. D (heads,). Gives x's shape and dtype. chunk: within it work is quadratic, between
    chunks linear; the result does not depend on it.
    """
    kernel = _fused("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined", x)
    if kernel is not None:
        dtype = _common(x, B, C)
        inputs, into, out_of = (one.to(dtype).contiguous() for one in (x, B, C))
        return kernel(inputs, delta.float(), A.float(), into, out_of, chunk, D=None if D is None else D.float()).to(x.dtype)
    dtype, (batch, length, heads, head_dim), (groups, state) = _accumulating(x), x.shape, B.shape[2:]
    chunk = min(chunk, length)
    parts = [_chunked(one.to(dtype), chunk, -(-length // chunk)) for one in (x, delta, B, C)]
    chunks = max(1, _budget(x) // (batch * heads * chunk * chunk))
    h, ys = x.new_zeros(batch, groups, heads // groups, head_dim, state, dtype=dtype), []
    decay = A.to(dtype)
    for inputs, steps, into, out_of in zip(*(part.split(chunks, 1) for part in parts), strict=True):
        segment = (inputs, steps, into, out_of, decay, h)
        # Recomputed in the backward pass: the chunk x chunk matrices of one segment exist at a time.
        y, h = (
            checkpoint(_dual_segment, *segment, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else _dual_segment(*segment)
        )
        ys.append(y)
    whole = torch.cat(ys, 1).flatten(1, 2)[:, :length]
    return (whole if D is None else whole + x * D.to(dtype)[:, None]).to(x.dtype)


def _dual_segment(x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Some chunks (batch, chunks, chunk, ...), from state h (batch, groups, heads per group, head_dim, state) to the next."""
    groups = B.shape[3]
    with torch.autocast(x.device.type, enabled=False):
        split = lambda one: one.unflatten(3, (groups, -1)).movedim(2, 4)  # (batch, chunks, groups, heads per group, chunk, ...)
        steps, inputs = split(delta), split(delta.unsqueeze(-1) * x)
        B, C = (one.transpose(2, 3).unsqueeze(3) for one in (B, C))
        log_decay = steps * A.view(groups, -1, 1)
        between = _decays(log_decay)
        y = (C @ B.mT * between) @ inputs
        states = (inputs * between[..., -1, :, None]).mT @ B
        # The same once more over chunks: row i of `across` takes the segment's first state and those chunks made to chunk i's end.
        across = _decays(pad(log_decay.sum(-1).movedim(1, -1), (1, 0)))
        states = torch.einsum("bgrij,bjgrpn->bigrpn", across, torch.cat([h.unsqueeze(1), states], 1))
        y = y + (C @ states[:, :-1].mT) * log_decay.cumsum(-1).exp().unsqueeze(-1)
        return y.movedim(4, 2).flatten(3, 4), states[:, -1]


def _decays(logs: Tensor) -> Tensor:
    """exp(logs[j+1] + ... + logs[i]) at [i, j], 0 above the diagonal: (..., n) -> (..., n, n)."""
    # In float64, because sums from the beginning are subtracted: in float32 their rounding would be that of the large sums.
    sums = logs.double().cumsum(-1)
    differences = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).to(logs.dtype)
    future = torch.ones(logs.shape[-1], logs.shape[-1], dtype=torch.bool, device=logs.device).triu(1)
    return differences.masked_fill(future, -torch.inf).exp()


# One operator of its own: torch.compile takes it as it stands instead of unrolling its loops.
@torch.library.custom_op("tilth::selective_scan", mutates_args=())
def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """y without D, and the state at the beginning of every chunk, (chunks + 1, batch, state, channels)."""
    cut, A = _Cut(u, A, chunk), _channels_last(A, u)
    y = torch.empty_like(u, dtype=A.dtype, memory_format=torch.contiguous_format)
    carries = A.new_zeros(cut.chunks + 1, len(u), *A.shape)
    for s in cut.segments():
        inputs, steps, into, out_of = (cut(one, s) for one in (u, delta, B, C))
        decay, h = _discretised(inputs * steps, steps, A, into)
        count = h.shape[2]
        if count > 1:  # where each chunk would end from nothing; then from where the one before ends
            end = h[0].clone()
            for decay_t, input_t in zip(decay[1:].unbind(), h[1:].unbind()):
                torch.addcmul(input_t, decay_t, end, out=end)
            whole = torch.exp(steps.sum(0).unsqueeze(-2) * A)
            for i in range(count - 1):
                torch.addcmul(end[:, i], whole[:, i], carries[s.start + i], out=carries[s.start + i + 1])
        _states(h, decay, carries[s].transpose(0, 1))
        carries[s.stop] = h[-1, :, -1]
        cut.put(y, s, _over_state(out_of, h))
    return y, carries


@torch.library.custom_op("tilth::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, carries: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C. With g_t that of h_t: g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, the scan reversed."""
    du, ddelta, dA, dB, dC = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (u, delta, A, B, C))
    cut, A = _Cut(u, A, chunk), _channels_last(A, u)
    total, later = torch.zeros_like(A), A.new_zeros(len(u), *A.shape)  # later: what comes back from beyond the segment
    for s in reversed(cut.segments()):
        inputs, steps, into, out_of, wanted = (cut(one, s) for one in (u, delta, B, C, dy))
        scaled, start = inputs * steps, carries[s].transpose(0, 1)
        decay, h = _discretised(scaled, steps, A, into)
        _states(h, decay, start)
        cut.put(dC, s, _over_channels(h, wanted))
        g = out_of.unsqueeze(-1) * wanted.unsqueeze(-2)
        back = torch.empty_like(h[0])
        back[:, -1] = later
        rows, decays = g.unbind(), decay.unbind()
        if h.shape[2] > 1:
            begin = decays[-1] * rows[-1]
            for t in range(len(rows) - 2, -1, -1):
                begin.add_(rows[t]).mul_(decays[t])
            whole = torch.exp(steps.sum(0).unsqueeze(-2) * A)
            for i in range(h.shape[2] - 1, 0, -1):
                torch.addcmul(begin[:, i], whole[:, i], back[:, i], out=back[:, i - 1])
        rows[-1].add_(back)
        for t in range(len(rows) - 2, -1, -1):
            rows[t].addcmul_(decays[t + 1], rows[t + 1])
        later = decay[0, :, 0] * g[0, :, 0]
        cut.put(dB, s, _over_channels(g, scaled))
        dscaled = _over_state(into, g)
        cut.put(du, s, dscaled * steps)
        g.mul_(decay)  # from here on g is the gradient of delta_t A: g_t exp(delta_t A) h_{t-1}
        g[1:].mul_(h[:-1])
        g[0].mul_(start)
        total += torch.mul(g, steps.unsqueeze(-2), out=decay).sum((0, 1, 2))
        cut.put(ddelta, s, torch.mul(g, A, out=decay).sum(-2).addcmul_(dscaled, inputs))
    dA.copy_(total.mT)
    return du, ddelta, dA, dB, dC


class _Cut:
    """Segments of (batch, length, n) as (chunk, batch, chunks, n), padded with steps of size zero, which change no state."""

    def __init__(self, u: Tensor, A: Tensor, chunk: int) -> None:
        self.length, self.dtype = u.shape[1], _accumulating(u)
        self.chunks = -(-self.length // chunk)
        self.chunk = -(-self.length // self.chunks)  # even ones: fewer steps of padding
        self.together = max(1, _budget(u) // (len(u) * A.numel() * self.chunk))

    def segments(self) -> list[slice]:
        """Chunks that are worked on side by side."""
        return [slice(i, min(i + self.together, self.chunks)) for i in range(0, self.chunks, self.together)]

    def tokens(self, segment: slice) -> slice:
        return slice(segment.start * self.chunk, min(segment.stop * self.chunk, self.length))

    def __call__(self, one: Tensor, segment: slice) -> Tensor:
        part = one[:, self.tokens(segment)].to(self.dtype)
        return _chunked(part, self.chunk, segment.stop - segment.start).permute(2, 0, 1, 3).contiguous()

    def put(self, whole: Tensor, segment: slice, part: Tensor) -> None:
        place = whole[:, self.tokens(segment)]
        place.copy_(part.permute(1, 2, 0, 3).flatten(1, 2)[:, : place.shape[1]])


def _channels_last(A: Tensor, u: Tensor) -> Tensor:
    """(state, channels), so that everything per channel is contiguous."""
    return A.to(_accumulating(u)).mT.contiguous()


def _discretised(inputs: Tensor, steps: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta B u, both (chunk, batch, chunks, state, channels)."""
    return (steps.unsqueeze(-2) * A).exp_(), inputs.unsqueeze(-2) * B.unsqueeze(-1)


def _states(h: Tensor, decay: Tensor, start: Tensor) -> None:
    """The recurrence in place: h holds each step's input before and the states after, all chunks side by side."""
    before = start
    for h_t, decay_t in zip(h.unbind(), decay.unbind()):
        before = h_t.addcmul_(decay_t, before)


# Autocast, where it is on, would take these products to bfloat16.
def _over_state(weights: Tensor, h: Tensor) -> Tensor:
    """(..., state) with (..., state, channels) -> (..., channels)."""
    with torch.autocast(h.device.type, enabled=False):
        return (weights.unsqueeze(-2) @ h).squeeze(-2)


def _over_channels(h: Tensor, weights: Tensor) -> Tensor:
    """(..., state, channels) with (..., channels) -> (..., state)."""
    with torch.autocast(h.device.type, enabled=False):
        return (h @ weights.unsqueeze(-1)).squeeze(-1)


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    dtype, chunks = _accumulating(u), -(-u.shape[1] // chunk)
    y = torch.empty_like(u, dtype=dtype, memory_format=torch.contiguous_format)
    return y, u.new_empty((chunks + 1, u.shape[0], A.shape[1], A.shape[0]), dtype=dtype)


@_scan_backward.register_fake
def _(dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, carries: Tensor, chunk: int) -> Any:
    return tuple(torch.empty_like(one, memory_format=torch.contiguous_format) for one in (u, delta, A, B, C))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, output[1])


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_scan_backward(dy, *ctx.saved_tensors, ctx.chunk), None)


_scan.register_autograd(_gradients, setup_context=_remember)


def _chunked(one: Tensor, chunk: int, chunks: int) -> Tensor:
    """(batch, length, ...) -> (batch, chunks, chunk, ...), zeros behind the end."""
    missing = chunk * chunks - one.shape[1]
    return pad(one, (0, 0) * (one.ndim - 2) + (0, missing)).unflatten(1, (chunks, chunk))


def _accumulating(one: Tensor) -> torch.dtype:
    return torch.float64 if one.dtype == torch.float64 else torch.float32


def _common(*tensors: Tensor) -> torch.dtype:
    """The narrowest dtype that holds all of them."""
    dtype = tensors[0].dtype
    for one in tensors[1:]:
        dtype = torch.promote_types(dtype, one.dtype)
    return dtype


def _budget(one: Tensor) -> int:
    return _TOGETHER.get(one.device.type, _TOGETHER["cuda"])


def _fused(module: str, name: str, one: Tensor) -> Callable[..., Tensor] | None:
    """A kernel of mamba_ssm: for CUDA, where it is installed; it has none for float64."""
    return _kernel(module, name) if one.is_cuda and one.dtype != torch.float64 else None


@cache
def _kernel(module: str, name: str) -> Callable[..., Tensor] | None:
    return getattr(import_module(module), name) if find_spec("mamba_ssm") else None
