"""Pre-training objectives of text: transformers' own losses, computed on fewer logits."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.methods import problem
from tilth.contracts import Batch, Noise
from tilth.pretrain.text import cross_entropy
from tilth.pretrain.text.cross_entropy import linear_cross_entropy


def gradients(objective, loss):
    objective.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in objective.named_parameters() if value.grad is not None}


def same(first, second):
    assert first.keys() == second.keys() and first
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["causal", "masked", "span_corruption"])
def test_loss_and_gradients_are_those_of_transformers(name, tmp_path):
    objective, examples = problem("pretrain", name, tmp_path)
    objective.eval()
    batch = examples.batch(np.arange(6), Noise(0, np.arange(6)))
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "labels", "position_ids") if batch.get(key) is not None}
    ours, theirs = objective(batch), objective.model(**given)
    assert ours.total.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert ours.parts["bits"].item() == pytest.approx(theirs.loss.item() / math.log(2), rel=1e-6)
    targets = batch.labels[:, 1:] if name == "causal" else batch.labels
    assert int(ours.count) == int((targets != -100).sum()) > 0
    same(gradients(objective, ours.total), gradients(objective, theirs.loss))


@pytest.mark.parametrize("name", ["causal", "masked"])
def test_named_columns_change_nothing(name, tmp_path):
    objective, examples = problem("pretrain", name, tmp_path)
    objective.eval()
    batch = examples.batch(np.arange(4), Noise(0, np.arange(4)))
    labels = batch.labels.clone()
    labels[:, 20:] = -100
    labels[0, :] = -100  # a row without any target
    values = {key: batch[key] for key in batch if key not in ("labels", "positions")}
    positions = torch.arange(1, 20).expand(4, -1).clone() if name == "causal" else torch.arange(20).expand(4, -1).clone()
    everywhere, named = (objective(Batch(**values, labels=labels, **extra)) for extra in ({}, {"positions": positions}))
    assert everywhere.total.item() == pytest.approx(named.total.item(), rel=1e-6) and int(everywhere.count) == int(named.count)
    same(gradients(objective, everywhere.total), gradients(objective, named.total))


@pytest.mark.parametrize("chunk", [2**21, 7 * 50])
def test_linear_cross_entropy_is_cross_entropy_of_all_logits(chunk, monkeypatch):
    monkeypatch.setitem(cross_entropy._LOGITS, "cpu", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(33, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (33,))
    labels[::5] = -100
    loss, count = linear_cross_entropy(hidden, weight, labels)
    found = torch.autograd.grad(2 * loss, (hidden, weight))
    plain = F.cross_entropy(hidden @ weight.T, labels, ignore_index=-100)
    wanted = torch.autograd.grad(2 * plain, (hidden, weight))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6) and int(count) == int((labels != -100).sum())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_without_any_label_the_loss_is_zero_with_zero_gradient():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
    loss, count = linear_cross_entropy(hidden, weight, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0 and int(count) == 0 and not hidden.grad.any() and not weight.grad.any()


def test_the_operator_passes_torchs_own_check():
    arguments = (
        torch.randn(5, 8, requires_grad=True),
        torch.randn(11, 8, requires_grad=True),
        torch.tensor([1, -100, 3, 4, 10]),
        True,
        True,
    )
    torch.library.opcheck(cross_entropy._summed, arguments, test_utils=("test_schema", "test_faketensor"), raise_exception=True)
    assert linear_cross_entropy(*arguments[:3])[1] == 4


@pytest.mark.slow
def test_causal_compiles_without_a_break(tmp_path):
    objective, examples = problem("pretrain", "causal", tmp_path)
    batch = examples.batch(np.arange(4), Noise(0, np.arange(4)))
    plain = objective(batch).total.item()
    assert torch.compile(objective, fullgraph=True, backend="aot_eager")(batch).total.item() == pytest.approx(plain, rel=1e-5)
