"""What timings on a GPU need: its work is waited for, and memory is what one side takes, not what lies beside it."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def seconds_per_call(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of one call, the mean of `calls` without a pause between them; nothing else is in the device's queue."""
    wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return (time.perf_counter() - started) / calls


def wait(device: torch.device) -> None:
    """Until the device has done all it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(run: Callable[[], object], own: Iterable[Tensor], device: torch.device) -> int | None:
    """Bytes on the GPU at the worst moment of a call: `own`, which lies there before, and all that the call adds. None on a CPU.

    Tensors of other sides, which wait for their turn, are not counted.
    """
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device) - before + sum(tensor.nbytes for tensor in own)
