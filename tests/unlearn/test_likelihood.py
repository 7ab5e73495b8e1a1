import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, Gemma2Config, GPT2Config, OPTConfig

from tests.unlearn.doubles import VOCABULARY, lm_batch, random_rows, tiny_lm
from tilth.contracts import Batch
from tilth.unlearn.likelihood import answer_log_probability, cross_entropy, kl_divergence, log_distribution

CONFIGURATIONS = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64),
    "gemma2": Gemma2Config(  # caps its logits after the output layer
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, final_logit_softcapping=0.5, initializer_range=1.0,
    ),
    "opt": OPTConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=8),
}  # fmt: skip


def by_hand(model, batch):
    """Per-token log-probabilities of the answers from the full logits: a list per row."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float().log_softmax(-1)
    return [
        torch.stack([logits[row, t - 1, label] for t, label in enumerate(labels) if label != -100])
        for row, labels in enumerate(batch.labels.tolist())
    ]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_any_causal_lm_agrees_with_its_full_logits(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGURATIONS[name]).eval()
    batch = lm_batch(random_rows(5, seed=2))
    expected = by_hand(model, batch)
    torch.testing.assert_close(
        answer_log_probability(model, batch), torch.stack([row.sum() for row in expected]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(cross_entropy(model, batch), -torch.cat(expected).mean(), rtol=1e-5, atol=1e-5)


def test_the_output_layer_sees_answer_positions_only_and_is_left_as_it_was():
    model = tiny_lm()
    batch = lm_batch(random_rows(6, seed=1))
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    answer_log_probability(model, batch)
    assert seen == [(1, int((batch.labels != -100).sum()), VOCABULARY)]
    handle.remove()
    assert model(batch.input_ids).logits.shape == (*batch.input_ids.shape, VOCABULARY)


def test_a_failing_model_does_not_keep_the_hook():
    model = tiny_lm()
    batch = lm_batch([([3], [VOCABULARY + 5])])
    with pytest.raises(IndexError):
        answer_log_probability(model, batch)
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("left", [False, True])
def test_padding_on_either_side_changes_nothing(left):
    model = tiny_lm().eval()
    rows = random_rows(5, seed=4)
    plain, padded = lm_batch(rows), lm_batch(rows, pad=9, left=left)
    if left:
        positions = (padded.attention_mask.cumsum(1) - 1).clamp(min=0)
        padded = Batch(**padded, position_ids=positions)
    torch.testing.assert_close(answer_log_probability(model, padded), answer_log_probability(model, plain), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_distribution(model, padded), log_distribution(model, plain), rtol=1e-5, atol=1e-5)


def test_an_answer_at_the_very_start_has_no_prediction():
    """Position 0 is predicted by nothing, so a label there is not counted."""
    model = tiny_lm()
    batch = lm_batch([([], [5, 6])])
    expected = model(batch.input_ids).logits.log_softmax(-1)[0, 0, 6]
    assert answer_log_probability(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_answer_tokens_has_zero_loss_and_gradient():
    model = tiny_lm()
    batch = lm_batch([([3, 4, 5], [])])
    assert answer_log_probability(model, batch).tolist() == [0.0]
    loss = cross_entropy(model, batch)
    loss.backward()
    assert loss.item() == 0.0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_half_precision_models_are_read_in_float32():
    model = tiny_lm().to(torch.bfloat16)
    values = answer_log_probability(model, lm_batch(random_rows(3, seed=1)))
    assert values.dtype == torch.float32


def test_a_classifier_has_one_answer_token():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    batch = Batch(inputs=x, labels=y)
    expected = model(x).log_softmax(-1)
    torch.testing.assert_close(answer_log_probability(model, batch), expected.gather(1, y[:, None])[:, 0])
    torch.testing.assert_close(cross_entropy(model, batch), nn.functional.cross_entropy(model(x), y))
    torch.testing.assert_close(log_distribution(model, batch), expected)


def test_a_text_classifier_of_transformers_is_a_classifier():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    rows = lm_batch(random_rows(4, seed=1))
    batch = Batch(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=torch.tensor([0, 1, 2, 1]))
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(
        answer_log_probability(model, batch), -nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    )


def test_kl_is_reference_first():
    reference, other = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_divergence(reference, other).item() == pytest.approx(
        0.9 * torch.log(torch.tensor(1.8)) + 0.1 * torch.log(torch.tensor(0.2))
    )
    assert kl_divergence(reference, other).item() != pytest.approx(kl_divergence(other, reference).item(), rel=1e-2)
