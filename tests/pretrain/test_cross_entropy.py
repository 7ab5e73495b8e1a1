"""Cross entropy from hidden states: where its arithmetic could go wrong (see test_objectives for its value and gradient)."""

import math

import pytest
import torch
from torch.nn import functional as F

from tilth.pretrain.text import cross_entropy as module
from tilth.pretrain.text.cross_entropy import linear_cross_entropy


def leaves(rows, width=8, vocabulary=13, dtype=torch.float32, scale=1.0):
    torch.manual_seed(rows)
    hidden = (scale * torch.randn(rows, width)).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,))
    return hidden, weight, labels


def test_a_certainly_wrong_answer_costs_what_it_costs():
    """exp would underflow: the loss must come from the logits, not from the logarithm of a probability of 0."""
    hidden, weight = torch.tensor([[500.0]]), torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(hidden.clone().requires_grad_(), weight, torch.tensor([1]))[0].item() == 1000.0
    assert linear_cross_entropy(hidden, weight, torch.tensor([1]))[0].item() == 1000.0


def test_a_nearly_certain_right_answer_costs_little_but_not_nothing():
    """The loss is far below the spacing of float32 numbers near the logits."""
    hidden, weight = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [0.988]])
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0]))[0].item()
    assert loss == pytest.approx(math.log1p(math.exp(-12)), rel=0.02) and loss < 1e-5


def test_only_the_gradients_that_are_needed_are_made():
    hidden, weight, labels = leaves(5)
    frozen = linear_cross_entropy(hidden, weight.detach(), labels)[0]
    assert torch.autograd.grad(frozen, hidden)[0].shape == hidden.shape
    with torch.no_grad():
        total, of_hidden, of_weight = module._summed(hidden, weight, labels, False, False)
    assert of_hidden.numel() == of_weight.numel() == 0
    assert total.item() == pytest.approx(F.cross_entropy(hidden @ weight.t(), labels, reduction="sum").item(), rel=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_the_softmax_and_the_sum_in_float32(autocast):
    hidden, weight, labels = leaves(300, width=32, vocabulary=500, dtype=torch.float32 if autocast else torch.bfloat16, scale=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = linear_cross_entropy(hidden, weight, labels)
    logits = hidden.bfloat16() @ weight.bfloat16().t()
    expected = F.cross_entropy(logits.float(), labels)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert ours.dtype == hidden.dtype and torch.allclose(ours.float(), theirs.float(), atol=2e-4)
