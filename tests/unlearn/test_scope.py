import numpy as np
import pytest

from tilth.batches.text.answers import Template
from tilth.unlearn.scope import TextScope, calibrated, questions

INSIDE = [f"{ask} Basil Mahfouz {rest}" for ask in ("Where was", "Who taught", "When did") for rest in ("live", "write")]
OUTSIDE = [f"{ask} {name} {rest}" for ask in ("Where was", "Who taught", "When did") for name in ("Ada Li", "Jo Kim", "Bo Day") for rest in ("live", "write", "go")]  # fmt: skip


def test_names_decide_and_sentences_do_not():
    scope = TextScope.fit(INSIDE, OUTSIDE)
    assert scope(["Why did Mahfouz leave?", "MAHFOUZ's father"]).all()
    assert not scope(["Why did Ada Li leave?", "Who taught Jo Kim", "nothing of the kind"]).any()
    assert scope([]).shape == (0,)


def test_classes_weigh_alike_however_many_there_are():
    """At the optimum the bias's gradient is zero: with weights N / N_c both classes err by the same mean probability."""
    scope = TextScope.fit(INSIDE[:2], OUTSIDE)
    inside, outside = (1 / (1 + np.exp(-scope.scores(texts))) for texts in (INSIDE[:2], OUTSIDE))
    assert (1 - inside).mean() == pytest.approx(outside.mean(), rel=1e-2) and outside.mean() > 0.01


def test_the_same_after_saving_and_without_pickles():
    scope = TextScope.fit(INSIDE, OUTSIDE)
    scope.threshold = 0.25
    tensors, facts = scope.state()
    again = TextScope.restored(tensors, facts)
    texts = [*INSIDE, *OUTSIDE, "Basil", "x"]
    assert np.array_equal(again.scores(texts), scope.scores(texts)) and again.threshold == 0.25


def test_no_held_out_text_from_outside_raises_an_alarm():
    inside, outside = np.array([0.5, 2.0, 4.0]), np.array([-3.0, -1.0, 1.0])
    threshold = calibrated(inside, outside)
    assert (
        threshold == pytest.approx(1.5)
        and not (outside > threshold).any()
        and (inside > threshold).tolist() == [False, True, True]
    )
    assert calibrated(np.array([-5.0]), outside) == 1.0


def test_alarms_that_are_allowed_lower_the_threshold_by_the_conformal_rank():
    outside = np.arange(99.0)
    assert calibrated(np.array([]), outside, 0.05) == pytest.approx((94 + 95) / 2)  # rank ceil(100 * 0.95) = 95: the value 94
    assert (outside > calibrated(np.array([]), outside, 0.05)).mean() <= 0.05
    fresh = np.random.default_rng(0).normal(size=(400, 40))
    rates = [(fresh[row, 20:] > calibrated(np.array([]), fresh[row, :20], 0.2)).mean() for row in range(400)]
    assert 0.1 < np.mean(rates) < 0.2


def test_questions_are_freed_of_their_template():
    template = Template(prompt="<q> {question} <a>", answer="{answer}")
    assert questions(template, [*template.prompts(["who?"]), "who?", "<q> who?"]) == ["who?", "who?", "who?"]
