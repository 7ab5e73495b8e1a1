"""Networks: the classes and sizes asked for, starting where they learn."""

import math

import pytest
import torch
from transformers import BertForMaskedLM, LlamaForCausalLM, T5ForConditionalGeneration

from tests.batches.texts import sentences, tokenizer_of
from tilth.backbones.text import CausalLM, EncoderDecoder, MaskedLM, inner_width
from tilth.errors import TilthError
from tilth.registry import configure

TOKENIZER = tokenizer_of(sentences(100))
IDS = torch.arange(4, 24).reshape(2, 10)


@pytest.mark.parametrize(
    ("backbone", "cls", "above"),
    [
        ({"causal_lm": {"width": 64, "depth": 2, "heads": 4, "kv_heads": 2}}, LlamaForCausalLM, 0.5),
        ({"masked_lm": {"width": 64, "depth": 2, "heads": 4}}, BertForMaskedLM, 0.5),
        # T5's own initialisation, with logits of variance 1 and more
        ({"encoder_decoder": {"width": 64, "depth": 2, "decoder_depth": 1, "heads": 4}}, T5ForConditionalGeneration, 1.5),
    ],
)
def test_a_fresh_network_knows_nothing_and_its_loss_says_so(backbone, cls, above):
    torch.manual_seed(0)
    model = configure("backbone", backbone).build().build(TOKENIZER)
    assert type(model) is cls and model.config._attn_implementation == "sdpa" and model.dtype == torch.float32
    loss = model(input_ids=IDS, labels=IDS).loss.item()
    above = 1.2 if cls is T5ForConditionalGeneration else 0.8  # T5 starts with an output layer of unit scale
    assert math.log(400) - 0.1 < loss < math.log(400) + above


@pytest.mark.parametrize("width", [64, 512])
def test_initialisation_scales_with_width_and_depth(width):
    torch.manual_seed(0)
    layer = CausalLM(width=width, depth=8, heads=4).build(TOKENIZER).model.layers[3]
    std = math.sqrt(2 / (5 * width))
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(std, rel=0.03)
    assert layer.mlp.gate_proj.weight.std().item() == pytest.approx(std, rel=0.03)
    for written in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
        assert written.std().item() == pytest.approx(std / 4, rel=0.03)


def test_the_same_seed_makes_the_same_network():
    first, second = (torch.manual_seed(3) and CausalLM(width=32, depth=1, heads=2).build(TOKENIZER) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_special_tokens_of_the_tokeniser_end_generations():
    model = CausalLM(width=32, depth=1, heads=2).build(TOKENIZER)
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (0, 1, 2)
    t5 = EncoderDecoder(width=32, depth=1, heads=2).build(TOKENIZER)
    assert t5.config.decoder_start_token_id == 2 and t5.generation_config.eos_token_id == 1


def test_the_gated_mlp_is_eight_thirds_of_the_width():
    assert [inner_width(width) for width in (8, 96, 256, 768, 4096)] == [32, 256, 672, 2048, 10912]
    assert CausalLM(width=96, heads=4).mlp == 256 and CausalLM(width=96, heads=4, mlp=7).mlp == 7


def test_embeddings_are_tied_or_not():
    tied, untied = (CausalLM(width=32, depth=1, heads=2, tie=tie).build(TOKENIZER) for tie in (True, False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CausalLM(width=100, heads=3), "does not divide into 3 heads"),
        (lambda: CausalLM(width=96, heads=4, kv_heads=3), "cannot share"),
        (lambda: CausalLM(width=12, heads=4), "are odd"),
        (lambda: MaskedLM(width=10, heads=4), "does not divide"),
        (lambda: EncoderDecoder(width=10, heads=4), "does not divide"),
    ],
)
def test_shapes_that_cannot_be_are_refused(make, said):
    with pytest.raises(TilthError, match=said):
        make()
