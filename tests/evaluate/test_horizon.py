"""Errors by distance from the cut: a linear Gaussian process, whose errors are known in closed form, and through the benchmark."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from tests.images import digits
from tilth.backbones.folder import load, save
from tilth.backbones.seg_mamba import SegMambaBackbone
from tilth.context import Context
from tilth.contracts import Sample, use
from tilth.errors import TilthError
from tilth.evaluate.horizon import Horizon, errors
from tilth.noise import Noise
from tilth.pretrain.images.token_unify import TokenUnify
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training

A, S, CUT, LENGTH = 0.8, 1.0, 3, 20
PIXELS = {"patch": (1, 1), "output": "linear", "fill": "zero", "views": use("views", "none")}


class Predictor(nn.Module):
    """Predicts every value of x_{t+1} = a x_t + e after the last one that is not hidden (0): a^distance of that, plus a bias.

    next_only: knows but one step, x_t = a x_{t-1} + bias; the others stay 0.
    """

    def __init__(self, bias=0.0, next_only=False):
        super().__init__()
        self.bias, self.next_only = bias, next_only

    def forward(self, pixel_values):
        places = torch.arange(pixel_values.shape[-1])
        last = torch.where(pixel_values != 0, places, 0).amax(-1, keepdim=True)
        ahead = places - last
        told = pixel_values.gather(-1, last) * A ** ahead.clamp(min=0) + self.bias
        return SemanticSegmenterOutput(logits=torch.where(ahead == 1, told, 0) if self.next_only else told)


def process(count=20_000):
    torch.manual_seed(0)
    values = [torch.randn(count) * S / (1 - A**2) ** 0.5]
    for _ in range(LENGTH - 1):
        values.append(A * values[-1] + S * torch.randn(count))
    return torch.stack(values, 1)[:, None, None], torch.from_numpy(Noise(0, torch.arange(count).numpy()).keys())


def measured(predictor, rolled):
    pixels, keys = process()
    return errors(TokenUnify(predictor, **PIXELS), pixels, keys, CUT, 10, rolled).mean(0)


def test_exact_predictors_err_by_the_variance_that_has_come_in():
    expected = torch.tensor([S**2 * sum(A ** (2 * i) for i in range(d)) for d in range(1, 11)])
    assert torch.allclose(measured(Predictor(next_only=True), True), expected, rtol=0.05)
    assert torch.allclose(measured(Predictor(), False), expected, rtol=0.05)


def test_a_bias_adds_up_when_rolled_out_and_not_when_all_is_told_at_once():
    bias = 0.5
    expected = torch.tensor([S**2 * sum(A ** (2 * i) for i in range(d)) for d in range(1, 11)])
    summed = torch.tensor([(bias * (1 - A**d) / (1 - A)) ** 2 for d in range(1, 11)])
    assert torch.allclose(measured(Predictor(bias, next_only=True), True), expected + summed, rtol=0.06)
    assert torch.allclose(measured(Predictor(bias), False), expected + bias**2, rtol=0.06)


def test_the_first_token_is_the_same_either_way():
    pixels, keys = process(50)
    made = TokenUnify(Predictor(0.3), **PIXELS)
    assert torch.equal(*(errors(made, pixels, keys, CUT, 5, rolled)[:, 0] for rolled in (True, False)))


def test_it_scores_a_saved_network(tmp_path):
    torch.manual_seed(0)
    network = SegMambaBackbone(widths=(4,), depths=(0,), hidden=4, strides=(2, 2)).build(Sample(1, (8, 8), (0.3,), (0.3,)))
    save(network, None, tmp_path / "model", {})
    context = Context(tmp_path / "stage", corpora={"digits": digits(tmp_path / "digits")})
    context.folder.mkdir()
    objective = use("pretrain", "token_unify", patch=(2, 2))
    settings = {
        "test": "digits",
        "distance": 8,
        "cuts": 3,
        "objective": objective,
        "batches": use("batches", "pictures", channels=1),
    }
    rolled, direct = (Horizon(rolled=rolled, **settings)(tmp_path / "model", context).metrics for rolled in (True, False))
    assert set(rolled) == {*(f"mse_{d}" for d in range(1, 9)), "growth"}
    assert rolled["mse_1"] == pytest.approx(direct["mse_1"]) and rolled["mse_8"] != direct["mse_8"]
    assert rolled["growth"] == pytest.approx(rolled["mse_8"] / rolled["mse_1"])
    with pytest.raises(TilthError, match="no token at distance 16"):
        Horizon(**{**settings, "distance": 16})(tmp_path / "model", context)
    with pytest.raises(TilthError, match="in an order"):
        Horizon(**{**settings, "objective": use("pretrain", "mae")})


def test_what_is_not_given_is_as_the_network_was_trained(tmp_path):
    context = Context(tmp_path / "stage", corpora={"digits": digits(tmp_path / "digits")})
    context.folder.mkdir()
    batches = use("batches", "pictures", channels=1)
    objective = use("pretrain", "token_unify", patch=(2, 4), fill="zero", output="linear", views=use("views", "none"))
    Pretrain(
        data="digits", objective=objective, batches=batches, budget=Budget(steps=2), training=Training(batch_size=4, compile=False),
        backbone=use("backbone", "seg_mamba", widths=(4,), depths=(0,), hidden=4, strides=(2, 2)),
    ).run(context)  # fmt: skip
    settings = {"test": "digits", "distance": 5, "cuts": 2, "batches": batches}
    given = Horizon(**settings, objective=objective)(context.folder / "model", context).metrics
    assert Horizon(**settings)(context.folder / "model", context).metrics == given
    for other in ({"patch": (2, 2)}, {"fill": "noise"}, {"output": "sigmoid"}):
        changed = use("pretrain", "token_unify", **{**objective.settings, **other})
        assert Horizon(**settings, objective=changed)(context.folder / "model", context).metrics != given
    trained = load(context.folder / "model")
    later = {"data": "x", "stage": {"objective": {"affinity": {}}}}  # what came after does not tell how tokens were predicted
    save(
        trained.model,
        None,
        tmp_path / "later",
        {"history": [*trained.about["history"], later, {"data": "y", "adapt": {"knn": {}}}]},
    )
    assert Horizon(**settings)(tmp_path / "later", context).metrics == given
    for name, about in (("bare", {}), ("other", {"history": [later]})):
        save(trained.model, None, tmp_path / name, about)
        with pytest.raises(TilthError, match="nothing tells how this model was taught"):
            Horizon(**settings)(tmp_path / name, context)
