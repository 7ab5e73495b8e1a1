"""Batches under torch.compile: what a batch holds decides which graph is used."""

import pytest
import torch

from tilth.contracts import Batch


@pytest.mark.parametrize("ask", ["get", "in"])
def test_a_graph_traced_without_a_mask_is_not_used_for_a_batch_that_has_one(ask):
    def total(batch: Batch) -> torch.Tensor:
        there = batch.get("mask") is not None if ask == "get" else "mask" in batch
        return (batch.x * batch["mask"]).sum() if there else batch.x.sum()

    torch._dynamo.reset()
    compiled = torch.compile(total, backend="eager")
    x = torch.arange(4.0)
    assert compiled(Batch(x=x)).item() == 6
    assert compiled(Batch(x=x, mask=torch.tensor([0.0, 0.0, 0.0, 1.0]))).item() == 3
