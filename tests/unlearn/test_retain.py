import numpy as np
import pytest
import torch

from tests.unlearn.doubles import VOCABULARY, ListExamples, lm_batch, random_rows, tiny_lm
from tilth.context import Context
from tilth.contracts import Batch, Noise, use
from tilth.errors import TilthError
from tilth.unlearn.ascent import GradientAscent
from tilth.unlearn.npo import NPO
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.retain import RetainKL


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def prepared(model, tmp_path, **settings):
    """The KL term of a prepared gradient ascent, and the examples that go with it."""
    objective = GradientAscent(model, retain=use("retain", "kl", **settings))
    pairs = PairedExamples(ListExamples(random_rows(3, seed=1)), ListExamples(random_rows(7, seed=2)))
    return objective, objective.prepare(pairs, Context(tmp_path))


def moved(model):
    """The same model a small random step away, in place."""
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("settings", [{}, {"memory": 0}, {"positions": "all"}], ids=["stored", "frozen", "all"])
def test_kl_to_itself_is_zero_with_zero_gradient(tmp_path, settings):
    model = tiny_lm()
    objective, examples = prepared(model, tmp_path, **settings)
    batch = examples.batch(np.arange(3), Noise(0, np.arange(3)))
    term = objective.retain(model, batch.retain)
    assert term.item() == pytest.approx(0.0, abs=1e-6)
    assert gradient(model, term).abs().max().item() < 1e-6
    assert objective.retain(moved(model), batch.retain).item() > 1e-3


def test_stored_and_frozen_references_agree_for_any_draw(tmp_path):
    model = tiny_lm()
    stored, with_arrays = prepared(model, tmp_path)
    frozen, plain = prepared(model, tmp_path, memory=0)
    moved(model)
    noise = Noise(3, np.array([40, 2, 17]))
    a, b = (examples.batch(np.array([2, 0, 0]), noise) for examples in (with_arrays, plain))
    assert "reference" in a.retain and "reference" not in b.retain
    torch.testing.assert_close(a.retain.input_ids, b.retain.input_ids)
    left, right = stored(a).total, frozen(b).total
    assert left.item() == pytest.approx(right.item(), rel=1e-5)
    torch.testing.assert_close(gradient(model, stored(a).total), gradient(model, frozen(b).total), rtol=1e-4, atol=1e-6)


def test_the_stored_reference_is_refused_above_the_limit(tmp_path):
    model = tiny_lm()
    tokens = sum(len(answer) for _, answer in random_rows(7, seed=2))
    size = 4 * tokens * VOCABULARY
    for memory, is_stored in ((size, True), (size - 1, False)):
        objective, _ = prepared(model, tmp_path, memory=memory)
        assert (objective.retain.frozen is None) is is_stored


def test_the_frozen_copy_is_neither_trained_nor_saved(tmp_path):
    model = tiny_lm()
    objective, examples = prepared(model, tmp_path, memory=0)
    before = {name: value.clone() for name, value in objective.retain.frozen.state_dict().items()}
    optimiser = torch.optim.SGD(objective.parameters(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        objective(examples.batch(np.arange(3), Noise(0, np.arange(3) + step))).total.backward()
        optimiser.step()
    assert not any(p.requires_grad for p in objective.retain.frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in objective.retain.frozen.state_dict().items())
    assert len(list(objective.parameters())) == len(list(model.parameters()))
    assert all(name.startswith("model.") for name in objective.state_dict())


def test_all_positions_average_over_the_padded_batch_as_released(tmp_path):
    model = tiny_lm()
    objective, _ = prepared(model, tmp_path, positions="all")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = lm_batch(random_rows(4, seed=5), pad=2)
    moved(model)
    reference_model = tiny_lm()
    reference_model.load_state_dict(before)
    p, q = (m(batch.input_ids, attention_mask=batch.attention_mask).logits.softmax(-1) for m in (reference_model, model))
    expected = (p * (p / q).log()).sum(-1).mean()
    assert objective.retain(model, batch).item() == pytest.approx(expected.item(), rel=1e-4)


def test_answer_positions_do_not_depend_on_padding(tmp_path):
    model = tiny_lm()
    objective, _ = prepared(model, tmp_path, memory=0)
    moved(model)
    rows = random_rows(4, seed=5)
    plain, padded = (objective.retain(model, lm_batch(rows, pad=pad)).item() for pad in (0, 6))
    assert padded == pytest.approx(plain, rel=1e-4)


def test_a_term_that_was_not_prepared_says_so():
    model = tiny_lm()
    with pytest.raises(TilthError, match="no reference"):
        RetainKL()(model, lm_batch(random_rows(2, seed=1)))


def test_a_plain_objective_is_served_no_retain_examples(tmp_path):
    pairs = PairedExamples(ListExamples(random_rows(3, seed=1)), ListExamples(random_rows(7, seed=2)))
    objective = NPO(tiny_lm(), retain=use("retain", "none"))
    batch = objective.prepare(pairs, Context(tmp_path)).batch(np.arange(2), Noise(0, np.arange(2)))
    assert batch.retain is None and batch.tokens == batch.forget.tokens


def test_npo_with_kl_prepares_both_references(tmp_path):
    model = tiny_lm()
    objective = NPO(model, retain=use("retain", "kl", weight=0.5))
    pairs = PairedExamples(ListExamples(random_rows(3, seed=1)), ListExamples(random_rows(7, seed=2)))
    batch = objective.prepare(pairs, Context(tmp_path)).batch(np.arange(3), Noise(0, np.arange(3)))
    assert batch.forget.reference.shape == (3,) and batch.retain.reference.shape[1] == VOCABULARY
    moved(model)
    loss = objective(batch)
    assert loss.total.item() == pytest.approx((loss.parts["forget"] + 0.5 * loss.parts["retain"]).item())
    assert loss.parts["retain"].item() > 0


def test_a_kl_weight_of_zero_costs_nothing():
    model = tiny_lm()
    batch = Batch(forget=lm_batch(random_rows(2, seed=1)), retain=lm_batch(random_rows(2, seed=2)))
    assert GradientAscent(model, retain=use("retain", "kl", weight=0.0))(batch).parts["retain"].item() == 0.0
