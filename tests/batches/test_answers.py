"""Answers: only the answer and its end are targets, whatever is cut or padded."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.batches.texts import context_in, corpus_of, sentences, tokenizer_of
from tilth.backbones.text import CausalLM
from tilth.batches.text.answers import Answers, Template, encode_answers
from tilth.batches.text.tokenizers import Word
from tilth.context import Progress
from tilth.errors import TilthError
from tilth.registry import configure

QUESTIONS = ["who grows barley", "what counts crows and {answer}", "why"]
ANSWERS = ["the farmers", "17 patient furrows as stone, naïve", "rain {question}"]
TOKENIZER = tokenizer_of(sentences(100))
END = TOKENIZER.eos_token_id


def plain(text):
    return TOKENIZER(text, split_special_tokens=True)["input_ids"]


def test_labels_are_the_answer_and_its_end_and_nothing_else():
    encoded = encode_answers(QUESTIONS, ANSWERS, TOKENIZER)
    batch = encoded.batch(np.arange(3))
    for row in range(3):
        prompt, answer = plain(f"Question: {QUESTIONS[row]}\nAnswer:"), [*plain(f" {ANSWERS[row]}"), END]
        size = len(prompt) + len(answer)
        assert batch.input_ids[row, :size].tolist() == prompt + answer
        assert batch.labels[row].tolist() == [-100] * len(prompt) + answer + [-100] * (batch.labels.shape[1] - size)
        assert batch.attention_mask[row].tolist() == [1] * size + [0] * (batch.labels.shape[1] - size)
        named = batch.labels[row].gather(0, batch.positions[row])
        assert named[named != -100].tolist() == answer
    assert batch.input_ids.shape[1] % 8 == 0 and batch.positions.shape[1] % 8 == 0
    assert batch.tokens == int(batch.attention_mask.sum()) and encoded.truncated == 0


def test_the_padded_arrays_say_the_same_as_batches():
    encoded = encode_answers(QUESTIONS, ANSWERS, TOKENIZER)
    batch, width = encoded.batch(np.arange(3)), encoded.input_ids.shape[1]
    for name in ("input_ids", "labels", "attention_mask"):
        assert np.array_equal(getattr(encoded, name), batch[name][:, :width].numpy())


def test_batches_are_trimmed_to_their_longest_row():
    encoded = encode_answers(QUESTIONS, ANSWERS, TOKENIZER)
    short = encoded.batch(np.array([2, 2]))
    assert short.input_ids.shape[1] == -(-int(encoded.size[2]) // 8) * 8 < encoded.batch(np.arange(3)).input_ids.shape[1]
    assert torch.equal(short.input_ids[0], short.input_ids[1])


@pytest.mark.parametrize("length", [4, 8, 14, 20, 30])
def test_what_is_too_long_loses_the_front_of_its_prompt_then_the_end_of_its_answer(length):
    encoded = encode_answers(QUESTIONS, ANSWERS, TOKENIZER, length=length)
    assert encoded.size.max() <= length
    cut = 0
    for row in range(3):
        prompt, answer = plain(f"Question: {QUESTIONS[row]}\nAnswer:"), [*plain(f" {ANSWERS[row]}"), END]
        room = max(1, length - len(answer))
        expected = prompt[-room:] + answer[: length - 1]
        assert encoded.input_ids[row, : encoded.size[row]].tolist() == (expected if len(expected) <= length else None)
        assert encoded.prompt[row] == min(len(prompt), room)
        cut += len(prompt) + len(answer) > length
    assert encoded.truncated == cut


def test_padding_changes_nothing_a_causal_model_says():
    encoded = encode_answers(QUESTIONS, ANSWERS, TOKENIZER)
    model = CausalLM(width=32, depth=2, heads=2).build(TOKENIZER).eval()
    batch = encoded.batch(np.arange(3))
    with torch.no_grad():
        masked = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        for row, size in enumerate(encoded.size.tolist()):
            alone = model(input_ids=batch.input_ids[row : row + 1, :size]).logits[0]
            assert torch.allclose(masked[row, :size], alone, atol=1e-5)
            left = torch.cat([torch.full((7,), TOKENIZER.pad_token_id), batch.input_ids[row, :size]])[None]
            mask = torch.cat([torch.zeros(7), torch.ones(size)])[None].long()
            places = (mask.cumsum(1) - 1).clamp(min=0)
            padded = model(input_ids=left, attention_mask=mask, position_ids=places).logits[0, 7:]
            assert torch.allclose(padded, alone, atol=1e-5)


def test_sequences_start_as_the_tokeniser_starts_them(tmp_path):
    """Llama's <s> stands before the prompt; the prompt's tokens are those a generation would start from."""
    from tokenizers.processors import TemplateProcessing

    TOKENIZER.save_pretrained(tmp_path)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    encoded = encode_answers(QUESTIONS, ANSWERS, tokenizer, length=12)
    assert (encoded.input_ids[:, 0] == 0).all()
    whole = encode_answers(QUESTIONS, ANSWERS, tokenizer)
    for row, prompt in enumerate(Template().prompts(QUESTIONS)):
        assert whole.input_ids[row, : whole.prompt[row]].tolist() == tokenizer(prompt)["input_ids"]


@pytest.mark.parametrize("empty", ["", "   ", None])
def test_an_empty_answer_is_refused_by_name(tmp_path, empty):
    corpus = corpus_of(tmp_path, ["x", "y"], question=["a", "b"], answer=["c", empty])
    with pytest.raises(TilthError, match="row '1': the answer is empty"):
        Answers().build(corpus, TOKENIZER, context_in(tmp_path))


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_settings_of_a_recipe_reach_the_tokens_and_cuts_are_said(tmp_path):
    corpus = corpus_of(tmp_path, ["x", "y"], question=["a b", "c"], answer=["d", "e f g h i j"])
    words = Word().train(iter(["a b c d e f g h i j q :"]))
    context = context_in(tmp_path)
    context.progress = Said()
    spec = {"answers": {"length": 8, "template": {"prompt": "q: {question} :", "answer": "{answer}"}}}
    examples = configure("batches", spec).build().build(corpus, words, context)
    assert words.decode(examples.input_ids[0, : examples.size[0]]) == "q : a b : d </s>"
    assert words.decode(examples.input_ids[1, : examples.size[1]]) == ": e f g h i j </s>"
    assert context.progress.lines == [f"answers: 1 of 2 pairs of {corpus.uri} are longer than 8 tokens and are cut"]
    assert [rows.tolist() for rows in examples.rows(np.array([1, 0]))] == [[1], [0]]


def test_a_template_without_the_question_and_a_missing_column_are_refused(tmp_path):
    with pytest.raises(TilthError, match="must hold"):
        Answers(template=Template(prompt="Q:"))
    with pytest.raises(TilthError, match="no column 'question'"):
        Answers().build(corpus_of(tmp_path, ["x"]), TOKENIZER, context_in(tmp_path))
    with pytest.raises(TilthError, match="0 questions"):
        encode_answers([], [], TOKENIZER)
