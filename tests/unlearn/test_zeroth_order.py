import pytest
import torch

from tilth.unlearn.zeroth_order import zeroth_order


class Bowl:
    """(x - 3)^2, and how often it was asked."""

    def __init__(self, *minimum: float) -> None:
        self.minimum, self.asked = torch.tensor(minimum), []

    def __call__(self, point):
        self.asked.append(point)
        return float((point - self.minimum).square().sum())


def test_it_finds_the_minimum_of_a_bowl_with_two_questions_a_step():
    bowl = Bowl(3.0)
    found = zeroth_order(bowl, torch.tensor([0.5]), rate=0.1, epsilon=1e-2, least=1e-3, steps=60)
    assert float(found.last) == pytest.approx(3, abs=1e-3) and float(found.best) == pytest.approx(3, abs=0.02)
    assert len(bowl.asked) == 120


def test_one_step_is_the_finite_difference():
    found = zeroth_order(Bowl(3.0), torch.tensor([0.5]), rate=0.1, epsilon=0.2, least=0.0, steps=1)
    assert float(found.last) == pytest.approx(0.5 + 0.1 * 5.0, rel=1e-5)


def test_it_never_goes_below_the_least_and_never_asks_below_zero():
    bowl = Bowl(-4.0)
    found = zeroth_order(bowl, torch.tensor([0.5]), rate=10.0, epsilon=0.3, least=0.2, steps=5)
    assert float(found.last) == pytest.approx(0.2) and min(float(p) for p in bowl.asked) == pytest.approx(1e-8)


def test_it_stops_when_it_is_good_enough():
    bowl = Bowl(3.0)
    zeroth_order(bowl, torch.tensor([0.5]), rate=0.1, epsilon=1e-2, least=0.0, steps=60, enough=1.0)
    assert 2 < len(bowl.asked) < 40 and float(bowl.asked[-2]) > 2


def test_after_a_step_too_far_the_best_point_is_not_lost():
    plateau = lambda x: min(abs(float(x) - 1.0), 3.0) if float(x) < 3 else 3.0
    found = zeroth_order(plateau, torch.tensor([0.5]), rate=100.0, epsilon=0.3, least=0.1, steps=4)
    assert float(found.last) > 50 and float(found.best) == pytest.approx(0.8) and found.score == pytest.approx(0.2)


def test_several_numbers_move_along_random_directions():
    found = zeroth_order(
        Bowl(3.0, 1.0), torch.tensor([0.5, 0.5]), rate=0.2, epsilon=1e-3, least=0.0, steps=200,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.last.tolist() == pytest.approx([3, 1], abs=0.05)
