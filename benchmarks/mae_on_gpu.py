"""A pre-training step of MAE with ViT-B on a GPU: Tilth's update beside transformers' ViTMAEForPreTraining in a bare loop.

Run: python -m benchmarks.mae_on_gpu [--batch 256 --steps 8 --repeats 3 --peak 989]
and: python -m benchmarks.mae_on_gpu --compiled tilth transformers     (to see on a CPU that it runs: --tiny)

Both sides: pictures of 224 pixels that lie on the device, patches of 16, 0.75 of them hidden, class token, normalised targets, a
decoder of 512 x 8, bf16 autocast, gradients clipped to norm 1, fused AdamW (betas 0.9 and 0.95). Each eager and, if named by
--compiled (none by default: compiling is most of the run, and its result a file of its own), compiled:

    tilth          what `fit` does in a step (`Update`), from bytes: they become floats and are standardised. No views.
    tilth, views   the same with its own default views: a random bicubic crop brought to 224 pixels, and a flip
    transformers   forward, backward, clipping and the optimiser, from floats that are standardised already

`ours` and `peer` are the first and the last, compiled where both are: neither augments. Figures are images per second, and the
share of peak (`mfu`) of the operations that each side's own model needs: matrix products of forward and backward, counted on
attention that is spelt out (so nothing that a fused kernel computes twice counts) and without views. Peak is once that of a bf16
product of 8192 x 8192 matrices timed in the same rounds, once the data sheet's (--peak, TFLOP/s; 989 is an H100's).
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import record, timings
from benchmarks.gpu import peak_bytes, seconds_per_call
from benchmarks.mae_steps import HOW, SIDES, TINY, Arm, Size, arms

COUNTED = 2  # images whose operations are counted; all cost the same


def flops_per_image(arm: Arm) -> float:
    """Operations of matrix products, forward and backward."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        arm.loss(COUNTED).backward()
    arm.optimiser.zero_grad(set_to_none=True)
    return counter.get_total_flops() / COUNTED


def product(size: int, device: torch.device) -> Callable[[], Tensor]:
    """A dense bf16 matrix product of random numbers."""
    left, right, out = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


def measured(
    size: Size, device: torch.device, compiled: Collection[str], steps: int, repeats: int, peak: float
) -> dict[str, Any]:
    """All figures. peak: of the data sheet, TFLOP/s."""
    made = arms(size, device, compiled)
    counted = {side: flops_per_image(made[side, "eager"]) for side in ("tilth", "transformers")}
    steppers = {", ".join(key): arm.step for key, arm in made.items()}
    first = {}
    for name, step in steppers.items():
        first[name] = seconds_per_call(step, 1, device)
        print(f"{name}: the first step took {first[name]:.1f} s", file=sys.stderr, flush=True)
    multiply = product(size.matrix, device)
    for warm in (*steppers.values(), multiply):
        seconds_per_call(warm, 2, device)
    calls = {**dict.fromkeys(steppers, steps), "product": 50}
    functions = {
        name: partial(seconds_per_call, run, calls[name], device) for name, run in {**steppers, "product": multiply}.items()
    }
    seconds = timings(functions, repeats)
    dense = 2 * size.matrix**3 / median(seconds["product"])
    rates = {name: size.batch / median(seconds[name]) for name in steppers}
    achieved = {", ".join(key): rates[", ".join(key)] * counted[key[0].split(",")[0]] for key in made}
    return {
        "images_per_second": rates,
        "mfu_of_measured_product": {name: rate / dense for name, rate in achieved.items()},
        "mfu_of_data_sheet": {name: rate / (peak * 1e12) for name, rate in achieved.items()},
        "tflops": {name: rate / 1e12 for name, rate in achieved.items()},
        "measured_product_tflops": dense / 1e12, "data_sheet_tflops": peak,
        "gflops_per_image": {side: operations / 1e9 for side, operations in counted.items()},
        "peak_bytes": {", ".join(key): peak_bytes(arm.step, arm.own(), device) for key, arm in made.items()},
        "parameters": {side: sum(one.numel() for one in made[side, "eager"].module.parameters()) for side in counted},
        "first_step_seconds": first, "seconds_per_step": seconds, "batch": size.batch, "steps": steps,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 256, "steps": 8, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peak", type=float, default=989.0, help="dense bf16 TFLOP/s of the data sheet")
    parser.add_argument("--compiled", nargs="*", choices=SIDES, default=(), help="sides to compile too")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny network on the CPU, printed and not written: to see that it runs"
    )
    given = parser.parse_args()
    if given.tiny:
        print(json.dumps(measured(TINY, torch.device("cpu"), given.compiled, 2, 1, given.peak), indent=2))
        return
    if not torch.cuda.is_available():
        raise SystemExit("This compares training steps on a GPU, and there is none; --tiny shows on a CPU that it runs.")
    size, device = replace(Size(), batch=given.batch), torch.device("cuda", torch.cuda.current_device())
    figures = measured(size, device, given.compiled, given.steps, given.repeats, given.peak)
    rates = figures["images_per_second"]
    both = {how: [rates.get(f"{side}, {how}") for side in ("tilth", "transformers")] for how in HOW}
    pairs = {how: found for how, found in both.items() if all(found)}
    how, (ours, peer) = list(pairs.items())[-1]
    record(
        "mae_on_gpu" + "_compiled" * (how == "compiled"), ours, peer, f"transformers' ViTMAEForPreTraining in a bare loop, {how}", "images per second", given.repeats,
        ratio_to_peer={how: ours / peer for how, (ours, peer) in pairs.items()}, **figures,
    )  # fmt: skip
    for name, rate in rates.items():
        shares = [f"{figures[which][name]:.1%}" for which in ("mfu_of_measured_product", "mfu_of_data_sheet")]
        print(f"{name}: {rate:,.0f} images per second, {shares[0]} of the measured product, {shares[1]} of the data sheet")


if __name__ == "__main__":
    main()
