import math

import pytest
import torch

from tests.unlearn.doubles import FixedLogProbabilities, forget_batch, lm_batch, random_rows, tiny_lm
from tilth.contracts import Batch, use
from tilth.unlearn.ascent import GradientAscent
from tilth.unlearn.likelihood import answer_log_probability
from tilth.unlearn.npo import NPO


def loss_at(log_ratio, beta, log_probability=-5.0):
    """The objective, and its derivative in log p, on one example whose log-ratio to the reference is given."""
    model = FixedLogProbabilities(torch.tensor([log_probability]))
    loss = NPO(model, beta=beta)(forget_batch(reference=torch.tensor([log_probability - log_ratio])))
    loss.total.backward()
    return loss.total.item(), model.values.grad.item()


def gradients(objective, batch):
    objective.zero_grad()
    objective(batch).total.backward()
    return torch.cat([p.grad.flatten() for p in objective.parameters()])


def with_reference(model, rows, shift=0.0):
    batch = lm_batch(rows)
    with torch.no_grad():
        reference = answer_log_probability(model, batch) - shift
    return Batch(samples=len(rows), forget=Batch(**batch, reference=reference), retain=None)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 5.0])
def test_at_the_reference_the_loss_is_known_and_the_derivative_is_gradient_ascents(beta):
    loss, derivative = loss_at(0.0, beta)
    assert loss == pytest.approx(2 / beta * math.log(2), rel=1e-6)
    assert derivative == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 5.0])
def test_at_the_reference_every_weight_of_a_language_model_moves_as_under_gradient_ascent(beta):
    model = tiny_lm()
    batch = with_reference(model, random_rows(5, seed=1))
    npo = gradients(NPO(model, beta=beta), batch)
    ascent = gradients(GradientAscent(model, per="example"), batch)
    assert ascent.abs().max() > 0.1
    torch.testing.assert_close(npo, ascent, rtol=1e-4, atol=1e-5)


def test_the_weight_of_an_example_is_twice_the_sigmoid_of_its_log_ratio():
    weights = [loss_at(r, beta=0.1)[1] for r in (-2.0, 0.0, 3.0)]
    assert weights == pytest.approx([0.9003, 1.0, 1.1489], abs=1e-4)


@pytest.mark.parametrize("log_ratio", [-2.0, -0.5, 0.0, 0.7, 3.0])
def test_a_small_beta_makes_the_loss_that_of_gradient_ascent(log_ratio):
    model = FixedLogProbabilities(torch.tensor([-5.0], dtype=torch.float64))
    batch = forget_batch(reference=torch.tensor([-5.0 - log_ratio], dtype=torch.float64))
    loss = NPO(model, beta=1e-4)(batch).total.item()
    assert loss - 2 / 1e-4 * math.log(2) == pytest.approx(log_ratio, abs=1e-3)


def test_what_is_forgotten_is_left_alone():
    for log_ratio in (-1000.0, -10_000.0):
        loss, derivative = loss_at(log_ratio, beta=0.1, log_probability=-20_000.0)
        assert loss == pytest.approx(0.0, abs=1e-30) and derivative == pytest.approx(0.0, abs=1e-30)


def test_far_above_the_reference_the_loss_is_twice_the_log_ratio():
    loss, derivative = loss_at(1000.0, beta=0.1)
    assert loss == pytest.approx(2000.0, rel=1e-6) and derivative == pytest.approx(2.0, rel=1e-5)


def test_log_probabilities_are_summed_over_the_answer_not_averaged():
    """With the mean, an answer of six tokens would weigh as one of one token."""
    model = tiny_lm()
    batch = lm_batch([([3, 4], [5, 6, 7, 8, 9, 10])])
    logits = model(batch.input_ids).logits.log_softmax(-1)
    by_hand = sum(logits[0, 1 + i, token] for i, token in enumerate([5, 6, 7, 8, 9, 10]))
    reference = by_hand.detach().reshape(1) - 3.0
    loss = NPO(model, beta=0.1)(Batch(forget=Batch(**batch, reference=reference), retain=None))
    assert loss.total.item() == pytest.approx(2 / 0.1 * math.log(1 + math.exp(0.3)), rel=1e-4)


def test_a_batch_of_two_is_the_mean_of_two_singles():
    model = tiny_lm()
    rows = random_rows(2, seed=3)
    objective = NPO(model, beta=0.5)
    both, *singles = [with_reference(model, part, shift=1.0) for part in (rows, rows[:1], rows[1:])]
    torch.testing.assert_close(
        gradients(objective, both), sum(gradients(objective, single) for single in singles) / 2, rtol=1e-4, atol=1e-6
    )
    assert objective(both).total.item() == pytest.approx(sum(objective(s).total.item() for s in singles) / 2, rel=1e-5)
    assert [objective(part).count for part in (both, singles[0])] == [2, 1]


def test_masked_tokens_change_nothing():
    model = tiny_lm()
    rows = random_rows(4, seed=5)
    objective = NPO(model, beta=0.1)
    plain = with_reference(model, rows, shift=0.5)
    padded = Batch(forget=Batch(**lm_batch(rows, pad=7), reference=plain.forget.reference), retain=None)
    assert objective(padded).total.item() == pytest.approx(objective(plain).total.item(), rel=1e-5)
    torch.testing.assert_close(gradients(objective, padded), gradients(objective, plain), rtol=1e-4, atol=1e-6)


def test_without_retain_examples_there_is_no_retain_term():
    model = tiny_lm()
    batch = with_reference(model, random_rows(2, seed=6))
    assert NPO(model)(batch).total.item() == NPO(model, retain=use("retain", "none"))(batch).total.item()
    assert NPO(model)(batch).parts["retain"].item() == 0.0


def test_the_retain_term_is_added_with_its_weight():
    model = tiny_lm()
    batch = with_reference(model, random_rows(2, seed=7))
    paired = Batch(forget=batch.forget, retain=lm_batch(random_rows(3, seed=8)))
    loss = NPO(model, retain=use("retain", "cross_entropy", weight=0.25))(paired)
    assert loss.parts["retain"].item() > 0
    assert loss.total.item() == pytest.approx((loss.parts["forget"] + 0.25 * loss.parts["retain"]).item(), rel=1e-6)
