"""Seconds of a forward and backward pass of the selective scan from 1k to 64k tokens, beside scaled dot-product attention.

Run: python -m benchmarks.state_space [--longest 65536 --repeats 9 --width 64 --state 16 --batch 1 --longest-attention 16384]
     python -m benchmarks.state_space --device cuda --dtype bf16 fp32 --repeats 5 [--compiled]
Both mix tokens of the same width, from inputs already projected and on the device: the scan has u, delta, B and C, attention q, k
and v in heads of 64, every token seeing all others. Short lengths are called several times for one timing. `ours` and `peer`
are at attention's longest length. Without arguments the width is 64 on a CPU and 1024 on a GPU (heads of the dual form: 16 and
64), and attention goes to 16k tokens on a CPU.
Recorded too: Mamba-2's form (dual), what every doubling of the length costs (`doublings`, demanded at most 2.2), and, on a GPU,
the bytes of each side at the worst moment of a pass, its inputs and gradients included. Doublings and the microseconds per token
are of the fastest of all rounds, each of which goes through every length: others on the machine slow some rounds, never all.

dtype: of u, B, C, x and of q, k, v; step sizes, decays and states stay fp32, as in the mixers. On a GPU, bf16 gives attention its
flash kernel; fp32 is without TF32, as PyTorch comes. compiled: the scan also as torch.compile's CUDA graph, in which its many
small kernels are launched at once (they are one operator, which is not compiled itself).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softplus

from benchmarks.common import record, timings
from benchmarks.gpu import peak_bytes, seconds_per_call
from tilth.backbones.state_space import selective_scan, state_space_dual

SHORTEST, AT_LEAST, ATTENTION_HEAD, ATTENTION_ROUNDS = 1024, 16384, 64, 3
WARM = 3  # passes of a CUDA graph before any is timed: it is recorded in the second
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What fills a device: one head's width is enough for a core and nothing to a GPU.
DEFAULTS = {
    "cpu": {"width": 64, "head": 16, "longest_attention": 16384},
    "cuda": {"width": 1024, "head": 64, "longest_attention": 65536},
}


@dataclass(frozen=True)
class Shape:
    """Of what is mixed, and where it lies. head: channels of one head of the dual form."""

    width: int
    state: int
    head: int
    batch: int
    device: torch.device
    dtype: torch.dtype

    def normal(self, length: int, width: int) -> Tensor:
        return torch.randn(self.batch, length, width, device=self.device).to(self.dtype)

    def steps(self, length: int, width: int) -> Tensor:
        return softplus(torch.randn(self.batch, length, width, device=self.device) - 3)


class Side:
    """A mixer at one length; called, it gives the seconds of one pass, the mean of as many as make up AT_LEAST tokens."""

    def __init__(self, mix: Callable[..., Tensor], length: int, inputs: list[Tensor], warm: int = 1) -> None:
        self.mix, self.calls = mix, max(1, AT_LEAST // length)
        self.leaves = [one.contiguous().requires_grad_() for one in inputs]
        self.gradient = torch.randn_like(self.leaves[0])
        seconds_per_call(self.once, warm, self.gradient.device)

    def __call__(self) -> float:
        return seconds_per_call(self.once, self.calls, self.gradient.device)

    def once(self) -> None:
        """Forward and backward."""
        torch.autograd.grad(self.mix(*self.leaves), self.leaves, self.gradient)

    def bytes(self) -> int | None:
        return peak_bytes(self.once, [*self.leaves, self.gradient], self.gradient.device)


def scan(shape: Shape, length: int, mix: Callable[..., Tensor] = selective_scan, warm: int = 1) -> Side:
    A = -torch.arange(1.0, shape.state + 1, device=shape.device).repeat(shape.width, 1)
    u, B, C = (shape.normal(length, width) for width in (shape.width, shape.state, shape.state))
    return Side(mix, length, [u, shape.steps(length, shape.width), A, B, C], warm)


def dual(shape: Shape, length: int) -> Side:
    heads = shape.width // shape.head
    x = shape.normal(length, shape.width).unflatten(-1, (heads, shape.head))
    B, C = (shape.normal(length, shape.state).unsqueeze(2) for _ in range(2))
    A = -torch.linspace(1, 16, heads, device=shape.device)
    return Side(state_space_dual, length, [x, shape.steps(length, heads), A, B, C])


def attention(shape: Shape, length: int) -> Side:
    qkv = [shape.normal(length, shape.width).unflatten(-1, (-1, ATTENTION_HEAD)).transpose(1, 2) for _ in range(3)]
    return Side(scaled_dot_product_attention, length, qkv)


def compare(shape: Shape, name: str, lengths: list[int], longest_attention: int, compiled: bool, repeats: int) -> None:
    """Time all of it and write results/NAME.json."""
    torch.manual_seed(0)
    forms: dict[str, Callable[[Shape, int], Side]] = {"scan": scan, "dual": dual}
    if compiled:
        graph = torch.compile(selective_scan, mode="reduce-overhead", dynamic=False)
        forms["scan compiled"] = partial(scan, mix=graph, warm=WARM)
    sides = {f"{form} {n}": make(shape, n) for form, make in forms.items() for n in lengths}
    # A graph's memory is its own and stays: there is no telling what one pass takes.
    memory = {side: sides[side].bytes() for side in sides if "compiled" not in side}
    seconds = timings(sides, repeats)
    fastest = {side: min(found) for side, found in seconds.items()}
    doublings = {
        form: {f"{n} to {2 * n}": fastest[f"{form} {2 * n}"] / fastest[f"{form} {n}"] for n in lengths[:-1]} for form in forms
    }
    ratios: dict[str, dict[int, float]] = {form: {} for form in forms}
    for length in (n for n in lengths if n <= longest_attention):
        other = attention(shape, length)
        ours, peer = timings({"ours": sides[f"scan {length}"], "peer": other}, ATTENTION_ROUNDS).values()
        seconds[f"attention {length}"], memory[f"attention {length}"] = peer, other.bytes()
        for form in forms:
            ratios[form][length] = median(peer) / median(ours if form == "scan" else seconds[f"{form} {length}"])
    record(
        name, median(ours), median(peer), f"scaled_dot_product_attention, {length} tokens", "seconds", ATTENTION_ROUNDS,
        width=shape.width, state=shape.state, batch=shape.batch, dtype=str(shape.dtype), threads=torch.get_num_threads(),
        ratio_to_attention=ratios.pop("scan"), ratio_to_attention_of_others=ratios, rounds=repeats,
        worst_doubling=max(doublings["scan"].values()), doublings=doublings, peak_bytes={side: most for side, most in memory.items() if most},
        microseconds_per_token={side: 1e6 * min(found) / int(side.split()[-1]) / shape.batch for side, found in seconds.items()},
        timings=seconds,
    )  # fmt: skip
    for form, costs in doublings.items():
        print(f"{form}: doubling the length costs at most {max(costs.values()):.2f} times the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"state": 16, "batch": 1, "longest": 65536, "repeats": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("width", "head", "longest-attention"):
        parser.add_argument(f"--{name}", type=int, help="by default as the device can take")
    parser.add_argument("--device", choices=DEFAULTS, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--compiled", action="store_true", help="the scan also as torch.compile's CUDA graph")
    given = parser.parse_args()
    width, head, longest = (getattr(given, name) or default for name, default in DEFAULTS[given.device].items())
    lengths = [SHORTEST << n for n in range((given.longest // SHORTEST).bit_length())]
    torch._dynamo.config.recompile_limit = 64  # every length and dtype is compiled apart
    for dtype in given.dtype:
        shape = Shape(width, given.state, head, given.batch, torch.device(given.device), DTYPES[dtype])
        name = "state_space_scan" + (f"_gpu_{dtype}" if given.device == "cuda" else "_bf16" * (dtype == "bf16"))
        compare(shape, name, lengths, longest, given.compiled, given.repeats)


if __name__ == "__main__":
    main()
