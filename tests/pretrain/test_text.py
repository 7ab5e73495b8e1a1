"""Objectives of text in every family of networks: logits only where something is predicted, and transformers' own losses."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    CohereConfig,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Olmo2Config,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from tests.batches.texts import context_in, corpus_of, sentences, tokenizer_of
from tilth.backbones.states import output_weight
from tilth.backbones.text import CausalLM, MaskedLM
from tilth.batches.text.answers import encode_answers
from tilth.contracts import Batch, Noise
from tilth.pretrain.text.causal import Causal
from tilth.pretrain.text.masked import MaskedTokens
from tilth.registry import configure

TEXTS = sentences(80)
TOKENIZER = tokenizer_of(TEXTS, sentinels=30)
VOCABULARY = len(TOKENIZER)
SMALL = {"width": 32, "depth": 2, "heads": 2}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
SPECIAL = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "cls_token_id": 0,
    "sep_token_id": 1,
}
PLAIN = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, attn_implementation="eager"),
    MistralConfig(**SIZES),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=16),
    Olmo2Config(**SIZES),
    GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0),
    GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
]
OTHERS = [
    Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=1.0),
    CohereConfig(**SIZES, logit_scale=0.3),
    OPTConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, dropout=0),
]


@pytest.fixture(scope="module")
def batch_of(tmp_path_factory):
    """A batch of any kind of text batches, of the first rows (None: all) of a small corpus."""
    folder = tmp_path_factory.mktemp("batches")
    corpus, context = corpus_of(folder, TEXTS), context_in(folder)

    def make(spec, rows=4):
        examples = configure("batches", spec).build().build(corpus, TOKENIZER, context)
        rows = len(examples) if rows is None else rows
        return examples.batch(np.arange(rows), Noise(0, np.arange(rows)))

    return make


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def agree(model, ours, theirs):
    assert ours.total.item() == pytest.approx(theirs.item(), abs=2e-6)
    for a, b in zip(gradients(model, ours.total), gradients(model, theirs), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("config", PLAIN + OTHERS, ids=lambda config: config.model_type)
def test_causal_is_transformers_loss_for_every_family(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    assert (output_weight(model) is not None) == (config in PLAIN)
    answers = encode_answers(["who grows", "why", "what is it, farmers"], ["barley and rain", "crows", "17"], TOKENIZER)
    sparse = answers.batch(np.arange(3))
    dense = Batch(input_ids=sparse.input_ids, labels=sparse.labels, attention_mask=sparse.attention_mask)
    for batch in (sparse, dense):
        found = Causal(model)(batch)
        agree(model, found, model(**{name: dense[name] for name in dense}).loss)
        assert found.count == (sparse.labels != -100).sum()


def test_on_rows_of_several_documents_the_loss_is_that_of_transformers_own_forward(batch_of):
    torch.manual_seed(0)
    model = CausalLM(**SMALL, kv_heads=1).build(TOKENIZER)
    batch = batch_of({"packed": {"length": 16, "packing": "best_fit"}}, rows=None)
    assert (batch.position_ids[:, 1:] == 0).any()
    agree(model, Causal(model)(batch), model(**batch).loss)  # with its key-value cache and all


def test_in_chunks_every_token_but_the_first_of_a_row_is_predicted(batch_of):
    batch = batch_of({"packed": {"length": 16}})
    assert Causal(CausalLM(**SMALL).build(TOKENIZER))(batch).count == 4 * 15


@pytest.mark.parametrize(
    "config",
    [
        None,
        RobertaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
        ModernBertConfig(**SPECIAL, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
        DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    ],
    ids=lambda config: config.model_type if config else "bert",
)
def test_masked_is_the_loss_of_the_full_computation(batch_of, config):
    torch.manual_seed(0)
    model = (MaskedLM(**SMALL).build(TOKENIZER) if config is None else AutoModelForMaskedLM.from_config(config)).eval()
    batch = batch_of({"masked": {"length": 32}})
    ours = MaskedTokens(model)(batch)
    agree(model, ours, model(input_ids=batch.input_ids, labels=batch.labels).loss)
    assert ours.count == 4 * round(32 * 0.15)
    without = MaskedTokens(model)(Batch(input_ids=batch.input_ids, labels=batch.labels))
    assert without.total.item() == pytest.approx(ours.total.item(), abs=1e-6) and without.count == ours.count


def test_the_vocabulary_head_sees_only_masked_tokens(batch_of):
    model = MaskedLM(**SMALL).build(TOKENIZER)
    seen = []
    model.cls.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    MaskedTokens(model)(batch_of({"masked": {"length": 32}}))
    assert seen == [(4, 5, VOCABULARY)]


def test_rows_with_fewer_targets_and_padding_are_the_full_computation_too(batch_of):
    model = MaskedLM(**SMALL).build(TOKENIZER).eval()
    batch = batch_of({"masked": {"length": 32, "whole_word": True, "mask_ratio": 0.3}}, rows=None)
    assert "attention_mask" in batch and (batch.labels.gather(1, batch.positions) == -100).any()
    ours = MaskedTokens(model)(batch)
    theirs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert ours.total.item() == pytest.approx(theirs.item(), abs=2e-6) and ours.count == (batch.labels != -100).sum()


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_weighted_by_their_counts_parts_of_a_batch_have_the_gradient_of_the_whole(cut):
    torch.manual_seed(0)
    model = CausalLM(**SMALL).build(TOKENIZER)
    answers = encode_answers(["a", "b c", "d", "e"], ["barley", "rain washes furrows and farmers", "17 crows", "the"], TOKENIZER)
    whole = Causal(model)(answers.batch(np.arange(4)))
    parts = [Causal(model)(answers.batch(rows)) for rows in (np.arange(cut), np.arange(cut, 4))]
    total = sum(part.total * part.count for part in parts) / sum(part.count for part in parts)
    agree(model, whole, total)


def test_the_causal_objective_is_one_graph_without_a_mask(batch_of):
    torch.manual_seed(0)
    learner = Causal(CausalLM(**SMALL).build(TOKENIZER))
    batch = batch_of({"packed": {"length": 16}})
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        attention = [n for n in graph.graph.nodes if "scaled_dot_product_attention" in str(n.target)]
        assert len(attention) == 2
        assert all(n.kwargs["is_causal"] is True and n.kwargs["attn_mask"] is None for n in attention)
        return graph.forward

    compiled = torch.compile(learner, fullgraph=True, backend=backend)
    agree(learner.model, compiled(batch), learner(batch).total)
    assert any("linear_cross_entropy" in name for name in seen)


@pytest.mark.parametrize("first", ["packed", "best_fit", "answers"])
def test_a_compiled_objective_sees_masks_and_columns_that_come_and_go(batch_of, first):
    """A graph made for batches without a mask must not serve one that has it."""
    torch.manual_seed(0)
    learner = Causal(CausalLM(**SMALL).build(TOKENIZER))
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(6)  # so that what is seen matters
    sparse = encode_answers(["who grows", "why", "what", "a"], ["barley and rain", "crows", "17", "b"], TOKENIZER).batch(
        np.arange(4)
    )
    several = batch_of({"packed": {"length": 16, "packing": "best_fit"}}, rows=None)
    kinds = {"packed": Batch(input_ids=several.input_ids, labels=several.labels), "best_fit": several, "answers": sparse}
    torch._dynamo.reset()
    compiled = torch.compile(learner, fullgraph=True, backend="eager")
    for name in [first, *kinds, *kinds]:
        assert compiled(kinds[name]).total.item() == pytest.approx(learner(kinds[name]).total.item(), rel=1e-5)
    assert abs(learner(kinds["packed"]).total - learner(kinds["best_fit"]).total) > 1e-2


def test_a_compiled_masked_objective_sees_the_padding_of_the_last_row(batch_of):
    torch.manual_seed(0)
    learner = MaskedTokens(MaskedLM(**SMALL).build(TOKENIZER).eval())
    padded = batch_of({"masked": {"length": 32}}, rows=None)
    full = Batch(**{name: padded[name] for name in padded if name != "attention_mask"})
    torch._dynamo.reset()
    compiled = torch.compile(learner, fullgraph=True, backend="eager")
    for batch in (full, padded, full):
        assert compiled(batch).total.item() == pytest.approx(learner(batch).total.item(), rel=1e-6)
    assert abs(learner(full).total - learner(padded).total) > 1e-6
