"""Processes and devices: where this process stands, and PyTorch's own DDP and `fully_shard` around an objective.

Notable: started by torchrun (RANK, WORLD_SIZE in the environment) or alone, by the same code; DTensors are taken apart
and put together in two functions, so that checkpoints and clipping look the same however a model is spread.
"""

from __future__ import annotations

import atexit
import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tilth.backbones.evaluating import computing_device


@dataclass(frozen=True)
class World:
    """rank of `size` processes, and the device this one computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, number: int) -> int:
        """The first process's number."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """(size, *shape) of every process's tensor, on the CPU."""
        if self.size == 1:
            return tensor.cpu()[None]
        parts = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        dist.all_gather(parts, tensor.to(self.device))
        return torch.stack(parts).cpu()


def world() -> World:
    """Join the processes torchrun started; alone without it. The device is CUDA where there is one."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    device = computing_device()
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return World(rank, size, device)


def _leave() -> None:
    if dist.is_initialized():
        # gloo's threads may still hold a last tensor known to Python; one that lets go of it while Python ends aborts the
        # process (pytorch#179291). Waiting gives them the interpreter; a barrier would hang where another process failed.
        time.sleep(0.1)
        dist.destroy_process_group()


def choose(parallel: str, module: nn.Module, here: World) -> str:
    """'none', 'ddp' or 'fsdp'. 'auto' shards when weights, gradients and two moments need over 0.4 of a GPU's memory."""
    if here.size == 1:
        return "none"
    if parallel != "auto":
        return parallel
    if here.device.type != "cuda":
        return "ddp"
    memory = torch.cuda.get_device_properties(here.device).total_memory
    return "fsdp" if 16 * sum(p.numel() for p in module.parameters()) > 0.4 * memory else "ddp"


def shard(module: nn.Module, here: World) -> None:
    """FSDP2, in place: each repeated block (a child of a ModuleList) is gathered when it runs, the rest with the root."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(here.device.type, (here.size,))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: children of its outermost ModuleLists that have parameters."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found.extend(block for block in child if any(True for _ in block.parameters()))
        else:
            found.extend(blocks(child))
    return found


def synchronised(runner: nn.Module, mode: str, last: bool) -> AbstractContextManager[Any]:
    """Within it gradients stay on this process, except in a step's last micro-batch."""
    if mode == "fsdp":
        cast(Any, runner).set_requires_gradient_sync(last)
    elif mode == "ddp" and not last:
        return cast(AbstractContextManager[Any], cast(Any, runner).no_sync())
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on every process (all must call)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(full: Tensor, target: Tensor) -> Tensor:
    """A full tensor, known to every process, spread over them as `target` is; nothing is sent."""
    if isinstance(target, DTensor):
        return distribute_tensor(full.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return full


def local(tensor: Tensor) -> Tensor:
    """This process's part; shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
