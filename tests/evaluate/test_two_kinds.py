"""Two benchmarks of two models, side by side."""

from pathlib import Path

import pytest

from tilth.context import Context
from tilth.contracts import Benchmark, Scores, use
from tilth.evaluate.two_kinds import TwoKinds
from tilth.registry import references


class Told(Benchmark):
    """Says which model it was given, as a number."""

    def __init__(self, extra):
        self.extra = extra

    def __call__(self, model, context):
        return Scores({"accuracy": float(model.name), **self.extra})


class Given:
    """A benchmark already made, as a setting gives it."""

    def __init__(self, benchmark):
        self.build = lambda: benchmark


def test_each_model_meets_its_benchmark_and_what_both_have_is_averaged(tmp_path):
    made = TwoKinds(of_volumes="deep", pictures=Given(Told({"rank": 3.0})), volumes=Given(Told({"dice": 0.5})))
    metrics = made(Path("1"), Context(tmp_path, inputs={"deep": Path("4")})).metrics
    assert metrics == {
        "picture_accuracy": 1.0, "picture_rank": 3.0, "volume_accuracy": 4.0, "volume_dice": 0.5, "mean_accuracy": pytest.approx(2.5),
    }  # fmt: skip


def test_models_and_data_of_both_are_seen_by_whoever_asks_what_it_refers_to():
    probes = [use("benchmark", "image_probe", train=f"{kind}_train", test=f"{kind}_test") for kind in ("flat", "deep")]
    configured = use("benchmark", "two_kinds", of_volumes="other", pictures=probes[0], volumes=probes[1])
    assert {name for _, name in references(configured)} == {"other", "flat_train", "flat_test", "deep_train", "deep_test"}
