"""Features: the mean over a text's own tokens, whatever it was batched with."""

import numpy as np
import pytest
import torch

from tests.batches.texts import sentences, tokenizer_of
from tilth.backbones.features import embed
from tilth.backbones.folder import TextModel
from tilth.backbones.text import CausalLM, EncoderDecoder, MaskedLM

TEXTS = [*sentences(40), ""]
TOKENIZER = tokenizer_of(TEXTS)
SMALL = {"width": 32, "depth": 2, "heads": 2}


@pytest.mark.parametrize("backbone", [CausalLM(**SMALL), MaskedLM(**SMALL), EncoderDecoder(**SMALL)])
def test_each_vector_is_the_mean_of_the_text_alone(backbone):
    model = backbone.build(TOKENIZER).train()
    found = embed(TextModel(model, TOKENIZER), TEXTS, batch_size=7)
    assert found.shape == (41, 32) and found.dtype == np.float32 and model.training
    model.eval()
    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([TOKENIZER(text)["input_ids"] or [TOKENIZER.eos_token_id]])
        with torch.no_grad():
            expected = body(input_ids=ids).last_hidden_state[0].mean(0)
        assert np.allclose(found[row], expected.numpy(), atol=1e-5)


def test_texts_longer_than_the_context_are_cut():
    model = MaskedLM(**SMALL, context=16).build(TOKENIZER).eval()
    long = " ".join(TEXTS)
    start = TOKENIZER.decode(TOKENIZER(long)["input_ids"][:16])
    found = embed(TextModel(model, TOKENIZER), [long, start])
    assert np.allclose(found[0], found[1], atol=1e-6)


def test_no_texts_give_no_vectors():
    model = CausalLM(**SMALL).build(TOKENIZER)
    assert embed(TextModel(model, TOKENIZER), []).shape == (0, 32)
