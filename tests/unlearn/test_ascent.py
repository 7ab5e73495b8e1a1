import pytest
import torch

from tests.unlearn.doubles import lm_batch, random_rows, tiny_lm
from tilth.contracts import Batch, use
from tilth.unlearn.ascent import GradientAscent, GradientDifference
from tilth.unlearn.likelihood import answer_log_probability, cross_entropy


def pair(forget_seed=1, retain_seed=2):
    return Batch(forget=lm_batch(random_rows(4, seed=forget_seed)), retain=lm_batch(random_rows(4, seed=retain_seed)))


def gradients(objective, batch):
    objective.zero_grad()
    objective(batch).total.backward()
    return torch.cat([p.grad.flatten() for p in objective.parameters()])


def test_ascent_is_descent_with_the_sign_turned():
    model, batch = tiny_lm(), pair()
    assert GradientAscent(model)(batch).total.item() == pytest.approx(-cross_entropy(model, batch.forget).item())


def test_per_example_sums_answers_and_averages_examples():
    model, batch = tiny_lm(), pair()
    total = GradientAscent(model, per="example")(batch).total.item()
    assert total == pytest.approx(answer_log_probability(model, batch.forget).sum().item() / 4)
    assert total != pytest.approx(GradientAscent(model)(batch).total.item(), rel=0.1)


def test_plain_ascent_does_not_look_at_the_retain_set():
    model = tiny_lm()
    assert GradientAscent(model)(pair()).total.item() == GradientAscent(model)(pair(retain_seed=9)).total.item()


def test_difference_is_ascent_plus_weighted_descent():
    model, batch = tiny_lm(), pair()
    loss = GradientDifference(model, retain_weight=0.5)(batch)
    assert loss.total.item() == pytest.approx(
        (0.5 * cross_entropy(model, batch.retain) - cross_entropy(model, batch.forget)).item(), abs=1e-6
    )
    assert loss.parts["retain"].item() == pytest.approx(cross_entropy(model, batch.retain).item())


def test_the_difference_of_a_set_and_itself_has_no_gradient():
    model = tiny_lm()
    rows = lm_batch(random_rows(4, seed=1))
    assert gradients(GradientDifference(model), Batch(forget=rows, retain=rows)).abs().max().item() < 1e-6


def test_difference_is_ascent_with_cross_entropy_as_its_retain_term():
    model, batch = tiny_lm(), pair()
    ascent = GradientAscent(model, retain=use("retain", "cross_entropy"))
    assert ascent(batch).total.item() == GradientDifference(model)(batch).total.item()
