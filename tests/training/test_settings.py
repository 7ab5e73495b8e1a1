import pytest

from tilth.errors import TilthError
from tilth.registry import Configured, use
from tilth.training.settings import Budget, Training, checked


def test_a_budget_is_exactly_one_of_its_kinds():
    with pytest.raises(TilthError, match="exactly one of steps, tokens, samples, epochs, seconds, flops"):
        Budget()
    with pytest.raises(TilthError, match="both steps and epochs"):
        Budget(steps=3, epochs=1)


@pytest.mark.parametrize("name", ["steps", "tokens", "samples", "epochs", "seconds", "flops"])
def test_a_budget_of_nothing_is_refused(name):
    with pytest.raises(TilthError, match=f"budget's {name} is 0"):
        Budget(**{name: 0})


def test_large_numbers_may_be_written_as_in_yaml():
    assert checked(Budget(tokens="1e6")).tokens == 1_000_000


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lr": -1.0}, "'lr' is -1.0: Input should be greater than 0"),
        ({"batch_size": 0}, "'batch_size' is 0"),
        ({"precision": "fp8"}, "'precision' is 'fp8': Input should be 'fp32' or 'bf16'"),
        ({"ema": 1.0}, "'ema' is 1.0"),
        ({"schedule": use("schedule", "cosin")}, "there is no schedule method 'cosin'"),
        ({"optimiser": use("optimiser", "adamw", beta=1)}, "'adamw' has no setting 'beta'"),
    ],
)
def test_a_wrong_setting_is_named(settings, complaint):
    with pytest.raises(TilthError) as raised:
        checked(Training(**settings))
    assert complaint in str(raised.value)


def test_methods_inside_come_back_with_their_defaults():
    training = checked(Training(schedule="constant", compile="on"))
    assert training.schedule == Configured("schedule", "constant", {"warmup": 0.0})
    assert training.optimiser.settings["betas"] == (0.9, 0.95)
    assert training.compile is True


@pytest.mark.parametrize(("name", "value"), [("seconds", 1e9), ("epochs", 1e8), ("steps", 10**10)])
def test_a_budget_nobody_can_mean_is_refused(name, value):
    with pytest.raises(TilthError, match="slip of the pen"):
        Budget(**{name: value})
