"""One update of the weights: forward, backward, gradients put right, optimiser.

Notable: gradients over micro-batches and processes are sums divided once by the total count, so they are those of one big
batch; in the plain case (one batch, one process) nothing is added to PyTorch's own steps but clipping. Whatever must scale
the gradients is folded with clipping into one multiplication, and nothing here waits for the device.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import Tensor, nn

from tilth.contracts import Batch, Objective
from tilth.errors import TilthError
from tilth.training.log import Micro
from tilth.training.parallel import World, blocks, local, shard, synchronised, whole
from tilth.training.settings import Budget, Training

# From where on compiling is won back. On a GPU it takes longer (its kernels are compiled too, over a minute for ViT-B) and steps are
# short, whatever the network: a hundredth of a second to a tenth.
_WORK_WORTH, _STEPS_WORTH = 4e9, 10_000  # steps * parameters on a CPU; steps on a GPU
_SECONDS_WORTH, _FLOPS_WORTH = {"cpu": 240.0, "cuda": 900.0}, {"cpu": 1e14, "cuda": 1e17}  # of budgets without known steps


class Runner(nn.Module):
    """What is compiled and wrapped by DDP: the objective, returning plain values."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | float, dict[str, Tensor]]:
        loss = self.objective(batch)
        return loss.total, loss.count, loss.parts


class Update:
    """The objective made ready for `mode` ('none', 'ddp', 'fsdp'); call it with a step's micro-batches.

    compiled: forward and backward are compiled, as one graph where the objective allows it; block by block under fsdp.
    """

    def __init__(self, objective: Objective, training: Training, world: World, mode: str, compiled: bool) -> None:
        self.objective, self.training, self.world, self.mode = objective, training, world, mode
        if compiled:
            torch._dynamo.reset()  # what earlier runs compiled counts against the limit of recompilations
        if mode == "fsdp" and compiled:
            for block in blocks(objective):
                block.compile()
        # The same without compilation and DDP. It is what is sharded: only tensors and plain containers of them tell
        # FSDP that the backward pass has come to the parameters that no block holds, and a Loss is neither.
        self.plain = Runner(objective)
        if mode == "fsdp":
            shard(self.plain, world)
        self.runner: nn.Module = self.plain if mode == "fsdp" else Runner(objective)
        if compiled and mode != "fsdp":
            self.runner.compile()
        if mode == "ddp":
            self.runner = nn.parallel.DistributedDataParallel(self.runner, find_unused_parameters=True)
        self.parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]

    def __call__(self, batches: list[Batch], optimiser: torch.optim.Optimizer) -> tuple[list[Micro], Tensor | None]:
        """Update the weights; returns the losses and the norm of the gradient before clipping, both on the device."""
        alone = len(batches) == 1 and self.world.size == 1
        micros = []
        for number, batch in enumerate(batches, 1):
            with synchronised(self.runner, self.mode, last=number == len(batches)):
                with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.training.precision == "bf16"):
                    total, count, parts = self.runner(batch)
                (total if alone else total * count).backward()
            micros.append(Micro(total.detach(), count, parts, batch.tokens, batch.samples))
        norm = self._finish_gradients(None if alone else self._weight(micros))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return micros, norm

    def _weight(self, micros: list[Micro]) -> Tensor | float:
        """By what the gradients must be multiplied: DDP and FSDP have taken the mean over processes of what is a sum."""
        count = sum(micro.count for micro in micros)
        if self.world.size == 1 and not isinstance(count, Tensor):
            return 1 / count
        total = torch.as_tensor(count, dtype=torch.float32, device=self.world.device).clone()
        return self.world.size / self.world.sum(total).clamp(min=1e-12)

    @torch.no_grad()
    def _finish_gradients(self, weight: Tensor | float | None) -> Tensor | None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        factor, norm = weight, None
        if self.training.clip is not None:
            norm = whole(nn.utils.get_total_norm(gradients))
            if weight is not None:
                norm = norm * weight
            limit = (self.training.clip / (norm + 1e-6)).clamp(max=1.0)
            factor = limit if weight is None else limit * weight
        if factor is not None:
            torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
        return norm


def whether_to_compile(training: Training, budget: Budget, objective: nn.Module, steps: int, world: World) -> tuple[bool, str]:
    """(compile or not, what to tell the user). Decided by settings and kind of device alone, so that resuming decides the same."""
    wanted = training.compile
    if wanted == "auto":
        kind = world.device.type
        if budget.seconds or budget.flops:
            wanted = (budget.seconds or 0) >= _SECONDS_WORTH[kind] or (budget.flops or 0) >= _FLOPS_WORTH[kind]
        elif kind == "cuda":
            wanted = steps >= _STEPS_WORTH
        else:
            parameters = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
            wanted = steps * parameters >= _WORK_WORTH
    missing = missing_compiler(world.device) if wanted else ""
    if missing and training.compile != "auto":
        raise TilthError(f"'compile' is on, but {missing}", hint="Install one, or set 'compile: auto' or 'compile: off'.")
    if missing:
        return False, f"not compiling: {missing}"
    return wanted, "compiling the model during the first step" if wanted else ""


def missing_compiler(device: torch.device) -> str:
    """What torch.compile would miss on this machine; empty when nothing."""
    if device.type == "cpu":
        return "" if any(shutil.which(name) for name in ("c++", "g++", "clang++")) else "there is no C++ compiler"
    from torch.utils._triton import has_triton

    return "" if has_triton() else "Triton is not installed"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the device or of the machine."""
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("not enough memory" in said or "can't allocate memory" in said)
    )


def finite(objective: nn.Module) -> bool:
    """Whether every weight and buffer is a finite number; waits for the device."""
    values: list[Any] = [local(tensor.detach()) for tensor in [*objective.parameters(), *objective.buffers()]]
    floats = [value for value in values if value.is_floating_point() and value.numel()]
    return bool(torch.stack([torch.isfinite(value.sum(dtype=torch.float64)) for value in floats]).all()) if floats else True
