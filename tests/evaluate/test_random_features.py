"""The random-feature study on its own bed, shortened where the property allows; figures are those of three pilot seeds."""

import json

import numpy as np
import pytest
import torch

from tilth.context import Context
from tilth.contracts import use
from tilth.evaluate.random_features import RandomFeatureUnlearning, accuracy

PLAIN = use("unlearn", "npo", beta=1.0, retain=use("retain", "none"))


def scores(folder, method, seed=0, **settings):
    folder.mkdir(exist_ok=True)
    return RandomFeatureUnlearning(method=method, **settings)(folder, Context(folder, seed=seed)).metrics


def test_ascent_runs_away_and_npo_does_not(tmp_path):
    ascent, npo = (
        scores(tmp_path / name, spec, steps=300) for name, spec in (("a", use("unlearn", "gradient_ascent")), ("b", PLAIN))
    )
    assert ascent["utility_before"] == npo["utility_before"] > 0.9
    assert npo["collapse_step"] >= 3 * ascent["collapse_step"] and ascent["collapsed"] == 1.0
    assert ascent["drift"] >= 30 * npo["drift"]
    assert 1.7 <= ascent["drift_growth"] <= 2.3 and npo["drift_growth"] <= 1.2
    assert ascent["forget_accuracy"] == npo["forget_accuracy"] == 0.0


def test_a_retain_term_saves_npo_and_not_ascent(tmp_path):
    npo = scores(tmp_path / "a", use("unlearn", "npo", beta=1.0), steps=300)
    difference = scores(tmp_path / "b", use("unlearn", "gradient_difference"), steps=300)
    assert npo["utility"] >= 0.90 and npo["forget_accuracy"] <= 0.05 and npo["collapsed"] == 0.0
    assert difference["utility"] <= 0.50 and difference["forget_accuracy"] <= 0.05


def test_the_first_step_of_npo_is_that_of_ascent(tmp_path):
    npo, ascent = (
        scores(tmp_path / name, spec, steps=1) for name, spec in (("a", PLAIN), ("b", use("unlearn", "gradient_ascent")))
    )
    assert npo["drift"] == pytest.approx(ascent["drift"], rel=1e-5) and npo["drift"] > 0


def test_seeds_are_different_beds_and_a_bed_is_a_function_of_its_seed(tmp_path):
    first, again, other = (scores(tmp_path / str(i), PLAIN, seed=seed, steps=20) for i, seed in enumerate((0, 0, 1)))
    assert first == again and first["drift"] != other["drift"]


def test_the_bed_is_the_cards():
    batch, test, head = RandomFeatureUnlearning().bed(3)
    assert len(batch.forget.labels) + len(batch.retain.labels) == 1200
    assert sorted(set(batch.forget.labels.tolist())) == [0, 1] and sorted(set(test.labels.tolist())) == list(range(2, 10))
    assert head.weight.shape == (10, 128) and (batch.forget.inputs >= 0).all()
    with torch.no_grad():
        log_p = head(batch.forget.inputs).log_softmax(1)
    np.testing.assert_allclose(batch.forget.reference, log_p.gather(1, batch.forget.labels[:, None])[:, 0], rtol=1e-5, atol=1e-6)
    assert accuracy(head, batch.forget) > 0.98 and not batch.forget.reference.requires_grad


def test_both_curves_go_to_the_report(tmp_path):
    scores(tmp_path, PLAIN, steps=30)
    shown = [json.loads(line) for line in (tmp_path / "exhibits.jsonl").read_text().splitlines()]
    assert [(one["kind"], one["y"]) for one in shown] == [("curves", "utility"), ("curves", "distance")]
    assert shown[0]["series"]["npo"][0][0] == 0 and shown[0]["series"]["npo"][-1][0] == 30
