"""Seconds of a forward and backward pass of the selective scan from 1k to 64k tokens, beside scaled dot-product attention.

Run: python -m benchmarks.state_space [--width 64 --state 16 --longest 65536 --longest-attention 16384 --repeats 9]
Both mix tokens of the same width in fp32, batch 1, from inputs already projected: the scan has u, delta, B and C, attention one
head of q, k and v. Short lengths are called several times for one timing. `ours` and `peer` are at attention's longest length.
Recorded too: Mamba-2's form, and what every doubling of the length costs (`doublings`, demanded at most 2.2). These and the
microseconds per token are of the fastest of all rounds, each of which goes through every length: others on the machine slow
some rounds, never all.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softplus

from benchmarks.common import record, timings
from tilth.backbones.state_space import selective_scan, state_space_dual

SHORTEST, AT_LEAST, HEAD = 1024, 16384, 16


def scan(length: int, width: int, state: int) -> Callable[[], float]:
    A = -torch.arange(1.0, state + 1).repeat(width, 1)
    return timed(
        selective_scan, length, [normal(length, width), steps(length, width), A, normal(length, state), normal(length, state)]
    )


def dual(length: int, width: int, state: int) -> Callable[[], float]:
    heads = width // HEAD
    x, B, C = normal(length, width).unflatten(-1, (heads, HEAD)), normal(length, state), normal(length, state)
    A = -torch.linspace(1, 16, heads)
    return timed(state_space_dual, length, [x, steps(length, heads), A, B.unsqueeze(2), C.unsqueeze(2)])


def attention(length: int, width: int) -> Callable[[], float]:
    return timed(scaled_dot_product_attention, length, [normal(length, width).unsqueeze(1) for _ in range(3)])


def normal(length: int, width: int) -> Tensor:
    return torch.randn(1, length, width)


def steps(length: int, width: int) -> Tensor:
    return softplus(normal(length, width) - 3)


def timed(mix: Callable[..., Tensor], length: int, inputs: list[Tensor]) -> Callable[[], float]:
    """Seconds of one pass forward and backward, the mean of as many as make up AT_LEAST tokens."""
    leaves = [one.contiguous().requires_grad_() for one in inputs]
    gradient, calls = torch.randn_like(mix(*leaves).detach()), max(1, AT_LEAST // length)

    def once() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            torch.autograd.grad(mix(*leaves), leaves, gradient)
        return (time.perf_counter() - started) / calls

    once()
    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 64, "state": 16, "longest": 65536, "longest-attention": 16384, "repeats": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    lengths = [SHORTEST << n for n in range((given.longest // SHORTEST).bit_length())]
    forms = {"scan": scan, "dual": dual}
    sides = {f"{name} {n}": form(n, given.width, given.state) for name, form in forms.items() for n in lengths}
    seconds = timings(sides, given.repeats)
    doublings = {
        name: {f"{n} to {2 * n}": min(seconds[f"{name} {2 * n}"]) / min(seconds[f"{name} {n}"]) for n in lengths[:-1]}
        for name in forms
    }
    ratios = {}
    for length in (n for n in lengths if n <= given.longest_attention):
        ours, peer = timings({"ours": sides[f"scan {length}"], "peer": attention(length, given.width)}, 3).values()
        ratios[length], seconds[f"attention {length}"] = median(peer) / median(ours), peer
    record(
        "state_space_scan", median(ours), median(peer), f"scaled_dot_product_attention, {length} tokens", "seconds", 3,
        width=given.width, state=given.state, threads=torch.get_num_threads(), ratio_to_attention=ratios, rounds=given.repeats,
        worst_doubling=max(doublings["scan"].values()), doublings=doublings,
        microseconds_per_token={name: 1e6 * min(found) / int(name.split()[1]) for name, found in seconds.items()}, timings=seconds,
    )  # fmt: skip
    for name, costs in doublings.items():
        print(f"{name}: doubling the length costs at most {max(costs.values()):.2f} times the time")


if __name__ == "__main__":
    main()
