"""Familiarity: which places are asked, and what is summed."""

import pyarrow as pa
import pytest
import torch

from tests.evaluate.tiny import llama, tokenizer, uniform
from tilth.backbones.folder import TextModel, save
from tilth.context import Context
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.evaluate.familiarity import Familiarity, name_prompts, term_probability
from tilth.unlearn.anchors import Anchors

ANCHORS = Anchors({"Mara": "Odo"})


def test_prompts_end_before_a_term_and_hold_none():
    text = "where is the blue dog of Mara and what of Mara is a big red cat at the tree MARA plays"
    assert name_prompts(text, ANCHORS, words=24, shortest=4) == ["where is the blue dog of", " is a big red cat at the tree"]
    assert name_prompts(text, ANCHORS, words=3, shortest=4)[0] == "blue dog of"


def test_a_uniform_model_gives_every_name_its_share():
    tokens = tokenizer()
    mass = term_probability(TextModel(uniform(len(tokens)), tokens), ["where is", "a dog of the town"], ANCHORS)
    assert mass == pytest.approx([1 / len(tokens)] * 2)
    two = term_probability(TextModel(uniform(len(tokens)), tokens), ["where is"], Anchors({"Mara": "x", "Odo": "x"}))
    assert two == pytest.approx([2 / len(tokens)])


def test_the_probability_is_that_of_the_next_token_whatever_shares_the_batch():
    tokens = tokenizer()
    model = llama(len(tokens))
    prompts = ["where is", "a dog of the town"]
    together = term_probability(TextModel(model, tokens), prompts, ANCHORS)
    name = tokens.convert_tokens_to_ids("Mara")
    for prompt, mass in zip(prompts, together, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokens(prompt, add_special_tokens=False).input_ids])).logits[0, -1]
        assert mass == pytest.approx(logits.softmax(-1)[name].item(), rel=1e-5)


def test_the_benchmark_on_texts(tmp_path):
    tokens = tokenizer()
    table = pa.table({"id": ["0", "1"], "text": ["where is the blue dog of Mara", "a book is of Mara"]})
    text = Corpus.write(tmp_path / "text.lance", table.to_batches(), table.schema)
    context = Context(tmp_path, corpora={"text": text})
    folder = save(uniform(len(tokens)), tokens, tmp_path / "model")
    scores = Familiarity(forget="text", anchors={"Mara": "Odo"}, max_new_tokens=2)(folder, context)
    assert scores.metrics["familiarity"] == pytest.approx(1 / len(tokens)) and scores.metrics["prompts"] == 2
    assert scores.metrics["completion_familiarity"] in (0.0, 1.0)
    with pytest.raises(TilthError, match="no place"):
        Familiarity(forget="text", anchors={"Odo": "Mara"})(folder, context)
