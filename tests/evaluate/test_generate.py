import numpy as np
import pytest
import torch

from tests.evaluate.tiny import clock, gpt2, llama, tokenizer
from tilth.backbones.folder import TextModel
from tilth.errors import TilthError
from tilth.evaluate.generate import generate

PROMPTS = ["the cat", "Mara lives in a big town and finds the dog", "who", "a green tree is at the red book", "Odo bakes"]


def ready(make, seed=0):
    tokens = tokenizer()
    return TextModel(make(len(tokens), seed=seed), tokens, {})


def one_at_a_time(text_model, prompt, new):
    """Greedy decoding with neither cache nor padding."""
    ids = text_model.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    start = ids.shape[1]
    for _ in range(new):
        with torch.no_grad():
            token = text_model.model(input_ids=ids).logits[0, -1].argmax()
        if token == text_model.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token[None, None]], 1)
    return text_model.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_equals_greedy_decoding_one_token_at_a_time(make, batch_size):
    text_model = ready(make)
    expected = [one_at_a_time(text_model, prompt, 40) for prompt in PROMPTS]
    assert generate(text_model, PROMPTS, 40, batch_size) == expected


@pytest.mark.parametrize("seed", [2, 4])
def test_rows_end_at_different_times(seed):
    """A model whose end token is likely: rows leave the batch in different rounds and the others go on undisturbed."""
    text_model = ready(llama, seed)
    end = text_model.tokenizer.eos_token_id
    prompts = [f"{one} {other}" for one in ("the", "a", "who", "cat") for other in ("dog", "Mara", "red")]
    with torch.no_grad():  # the end token becomes the second choice of many states
        text_model.model.lm_head.weight[end] = 1.15 * text_model.model.lm_head.weight[10:20].mean(0) * 3
    expected = [one_at_a_time(text_model, prompt, 36) for prompt in prompts]
    assert len({len(text.split()) // 16 for text in expected}) > 1
    assert generate(text_model, prompts, 36, 12) == expected


def test_stops_at_the_end_token_and_leaves_it_out():
    tokens = tokenizer()
    text_model = TextModel(clock(len(tokens)), tokens, {})
    order = tokens.convert_ids_to_tokens(list(range(len(tokens))))
    [text] = generate(text_model, [order[-3]], 10)
    assert text.split()[:2] == order[-2:]  # and then from the first id: <s>, </s>
    assert len(text.split()) == 2


def test_never_exceeds_the_context():
    tokens = tokenizer()
    text_model = TextModel(gpt2(len(tokens), context=24), tokens, {})  # learnt positions: one more token would raise
    texts = generate(text_model, ["the cat " * 30, "who"], 100, batch_size=2)
    assert len(texts) == 2 and max(len(tokens(text).input_ids) for text in texts) <= 24


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator_alone():
    text_model = ready(llama)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = generate(text_model, PROMPTS, 12, temperature=1.0, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == generate(text_model, PROMPTS, 12, temperature=1.0, seed=1)
    assert first != generate(text_model, PROMPTS, 12, temperature=1.0, seed=2)


def test_sampling_follows_the_models_distribution():
    tokens = tokenizer()
    model = llama(len(tokens))
    texts = generate(TextModel(model, tokens, {}), ["the cat"] * 2000, 1, 500, temperature=1.0)
    with torch.no_grad():
        wanted = model(input_ids=tokens("the cat", return_tensors="pt").input_ids).logits[0, -1].softmax(-1).numpy()
    likely = int(wanted[5:].argmax()) + 5
    share = np.mean([text == tokens.convert_ids_to_tokens(likely) for text in texts])
    assert abs(share - wanted[likely]) < 4 * np.sqrt(wanted[likely] / 2000)


def test_a_model_that_cannot_generate_is_refused():
    tokens = tokenizer()
    with pytest.raises(TilthError, match="cannot generate"):
        generate(TextModel(torch.nn.Linear(2, 2), tokens, {}), ["a"])
