"""Losses of whole batches: rows, sums and means over all processes, with gradients, and a batch norm of all of them.

Notable: each process's loss is a function of every process's rows; the backward pass of each operation therefore adds up what all
processes send back, and with `fit` weighing totals by their counts the gradient is that of one process with the whole batch.
Plain collectives, so that gloo on CPUs does what NCCL does on GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def size() -> int:
    """Number of processes; 1 where there is just this one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def together(training: bool) -> bool:
    """Whether there are others to compute with. Held-out batches differ in number between processes, so there each is alone."""
    return training and size() > 1


def gather(rows: Tensor, training: bool) -> Tensor:
    """(processes * n, ...) of every process's rows (n, ...), in the order of the processes; n is the same on all of them.

    training: whether this is a training step, in which all processes take part; the rows themselves otherwise. Own rows stand at
    `rank() * n` and after.
    """
    return _gathered(rows) if together(training) else rows


def total(values: Tensor, training: bool) -> Tensor:
    """The sum of every process's tensor, on all of them. training: see `gather`."""
    return _summed(values) if together(training) else values


def count(rows: Tensor, training: bool) -> int:
    """How many rows all processes have, each as many as this one. training: see `gather`."""
    return len(rows) * (size() if together(training) else 1)


def mean(rows: Tensor, training: bool) -> Tensor:
    """(...): the mean over all processes' rows (n, ...), each with as many. training: see `gather`."""
    return total(rows.sum(0), training) / count(rows, training)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation (arXiv 1502.03167) of rows (n, width) by the mean and variance of all processes' rows, in float32.

    torch's SyncBatchNorm is the same on GPUs alone. The variance is taken around the common mean, so it does not cancel.
    """

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.float()
        if not together(self.training):
            return super().forward(rows)
        average = mean(rows, True)
        centred = rows - average
        variance = mean(centred.square(), True)
        self._remember(average.detach(), variance.detach(), count(rows, True))
        scaled = centred * (variance + self.eps).rsqrt()
        return scaled * self.weight + self.bias if self.affine else scaled

    @torch.no_grad()
    def _remember(self, average: Tensor, variance: Tensor, rows: int) -> None:
        """Running statistics as torch keeps them: of the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(average, share)
        self.running_var.lerp_(variance * (rows / (rows - 1)), share)


# Compiling goes around the two: what a compiler makes of collectives inside a backward pass of one's own differs by version.
@torch.compiler.disable
def _gathered(rows: Tensor) -> Tensor:
    result: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return result


@torch.compiler.disable
def _summed(values: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(size() * len(rows), *rows.shape[1:])
        dist.all_gather(list(gathered.chunk(size())), rows.contiguous())
        return gathered

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        [gradient] = gradients
        own = gradient.new_empty(len(gradient) // size(), *gradient.shape[1:])
        dist.reduce_scatter(own, list(gradient.contiguous().chunk(size())))
        return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        summed = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        [gradient] = gradients
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed
