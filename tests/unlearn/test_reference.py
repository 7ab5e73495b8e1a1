import numpy as np
import torch

from tests.unlearn.doubles import ListExamples, lm_batch, random_rows, tiny_lm
from tilth.backbones.fingerprint import fingerprint
from tilth.context import Context
from tilth.unlearn import reference
from tilth.unlearn.likelihood import answer_log_probability, log_distribution

ROWS = random_rows(70, seed=1)  # more than two forward passes


def test_references_are_those_of_each_example_alone(tmp_path):
    model = tiny_lm().eval()
    values = reference.log_probabilities(model, ListExamples(ROWS), Context(tmp_path))
    alone = [answer_log_probability(model, lm_batch([row])).item() for row in ROWS]
    np.testing.assert_allclose(values, alone, rtol=1e-5, atol=1e-5)
    assert values.dtype == np.float32


def test_distributions_are_those_of_each_example_alone(tmp_path):
    model = tiny_lm().eval()
    stored = reference.distributions(model, ListExamples(ROWS), Context(tmp_path), limit=2**20)
    for number in (0, 33, 69):
        expected = log_distribution(model, lm_batch([ROWS[number]])).detach().numpy()
        np.testing.assert_allclose(stored[np.array([number])], expected, rtol=1e-4, atol=1e-5)


def test_the_reference_is_taken_without_dropout_and_the_mode_is_kept(tmp_path):
    model = tiny_lm(dropout=0.5).train()
    model.model.layers[0].eval()
    values = reference.log_probabilities(model, ListExamples(ROWS[:5]), Context(tmp_path))
    assert model.training and not model.model.layers[0].training
    np.testing.assert_allclose(values, answer_log_probability(model.eval(), lm_batch(ROWS[:5])).detach(), rtol=1e-5, atol=1e-5)


def test_it_is_computed_once_per_model_and_data(tmp_path, monkeypatch):
    calls = []
    true = reference.answer_log_probability
    monkeypatch.setattr(reference, "answer_log_probability", lambda *given: calls.append(1) or true(*given))
    model, context = tiny_lm(), Context(tmp_path)
    first = reference.log_probabilities(model, ListExamples(ROWS[:5]), context)
    again = reference.log_probabilities(tiny_lm(), ListExamples(ROWS[:5]), context)
    assert len(calls) == 1 and (first == again).all()
    reference.log_probabilities(model, ListExamples(ROWS[:6]), context)
    with torch.no_grad():
        model.model.embed_tokens.weight[4, 0] += 1e-6
    reference.log_probabilities(model, ListExamples(ROWS[:5]), context)
    assert len(calls) == 3


def test_fingerprints_know_every_bit():
    model = tiny_lm()
    before = fingerprint(model)
    assert fingerprint(tiny_lm()) == before
    assert fingerprint(tiny_lm().to(torch.bfloat16)) != before
    model.config.rms_norm_eps *= 2
    assert fingerprint(model) != before
    changed = [*ROWS[:3], (ROWS[3][0], [*ROWS[3][1][:-1], 3 + ROWS[3][1][-1] % 20])]
    assert reference.examples_fingerprint(ListExamples(ROWS[:4])) != reference.examples_fingerprint(ListExamples(changed))
