import pytest
import torch

from tests.evaluate.tiny import gpt2
from tests.unlearn.doubles import lm_batch, random_rows, tiny_lm
from tilth.unlearn.integrated_gradients import answer_attributions, integrated_gradients
from tilth.unlearn.likelihood import answer_log_probability


def blank(model, batch):
    """log p of each answer when its tokens' embeddings are zero."""
    embedding = model.get_input_embeddings()
    answer = (batch.labels != -100).unsqueeze(-1)
    handle = embedding.register_forward_hook(lambda _, __, out: out.masked_fill(answer, 0))
    try:
        return answer_log_probability(model, batch)
    finally:
        handle.remove()


@pytest.mark.parametrize("model", [tiny_lm(), gpt2(23)], ids=["llama", "gpt2"])
def test_attributions_add_up_and_the_error_shrinks_with_points(model):
    model.eval()
    batch = lm_batch(random_rows(4, seed=1))
    with torch.no_grad():
        change = answer_log_probability(model, batch) - blank(model, batch)
    errors = [(answer_attributions(model, batch, points).sum(1) - change).abs().max().item() for points in (4, 256)]
    assert errors[1] < 0.02 * change.abs().max().item() and errors[1] < 0.2 * errors[0]


def test_a_linear_score_is_shared_out_exactly_with_one_point():
    weights, inputs, baseline = torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5)
    parts = integrated_gradients(lambda x: (weights * x).sum() + 7, inputs, baseline, points=1)
    torch.testing.assert_close(parts, weights * (inputs - baseline))


def test_midpoints_leave_an_error_of_the_second_order():
    """Left or right ends of the intervals would be off by a sixteenth."""
    inputs = torch.tensor([2.0, -3.0])
    parts = integrated_gradients(lambda x: x.square().sum(), inputs, torch.zeros(2), points=32)
    torch.testing.assert_close(parts, torch.tensor([4.0, 9.0]), rtol=1e-3, atol=0.0)


def test_prompts_padding_and_tokens_at_the_baseline_get_nothing():
    model = tiny_lm().eval()
    rows = random_rows(3, seed=2)
    rows[0] = ([3, 4], [5, 6, 5])
    with torch.no_grad():
        model.get_input_embeddings().weight[6] = 0  # token 6 is its own baseline
    found = answer_attributions(model, lm_batch(rows, pad=3), 8)
    outside = lm_batch(rows, pad=3).labels == -100
    assert found[outside].abs().max() == 0 and found[0, 3] == 0 and found[0, 2] != 0


def test_an_answer_does_not_hang_on_its_company_and_the_model_is_left_as_it_was():
    model = tiny_lm().eval()
    rows = random_rows(3, seed=3)
    together = answer_attributions(model, lm_batch(rows), 4)
    for row, one in enumerate(rows):
        alone = answer_attributions(model, lm_batch([one]), 4)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
