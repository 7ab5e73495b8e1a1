"""Guards: what they concern goes through them on every path, what they leave alone is the bare model's, bit for bit."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

from tests.evaluate.tiny import llama, tokenizer
from tilth.backbones import folder
from tilth.backbones.folder import TextModel
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Guard, method, use
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import score_answers

PROMPTS = ["the cat", "where lives Mara", "who", "Mara finds the dog", "Odo bakes"]
TEMPLATE = Template(prompt="{question}", answer="{answer}")
CONCERNED = np.array(["Mara" in prompt for prompt in PROMPTS])


@method("unlearn", "forbid_for_this_test")
class Forbid(Guard):
    """Concerns prompts with a word in them; there, one token can never be said; `way`: by which of a guard's means."""

    def __init__(self, *, way: str = "processors", word: str = "Mara") -> None:
        self.way, self.word = way, word
        self.refusal = "I cannot say ." if way == "refusal" else None
        self.token = torch.tensor(0)
        self.seen: list[int] = []

    def fit(self, task):
        return {}

    def state(self):
        return {"token": self.token}, {"word": self.word}

    def restore(self, tensors, facts, text_model):
        self.token = tensors["token"]

    def flags(self, text_model, prompts):
        assert text_model.guard is None
        return np.array([self.word in prompt for prompt in prompts])

    @contextmanager
    def acting(self, text_model):
        def forbid(_, __, output):
            self.seen.append(len(output))
            return output.index_fill(-1, self.token, -1e9)

        handle = text_model.model.lm_head.register_forward_hook(forbid) if self.way == "acting" else None
        yield
        if handle:
            handle.remove()

    def processors(self, text_model):
        class Never(LogitsProcessor):
            def __call__(_, input_ids, scores):
                return scores.index_fill(-1, self.token, -1e9)

        return [Never()] if self.way == "processors" else []

    def decode(self, text_model, prompts, max_new_tokens):
        return [f"{len(prompts)} {max_new_tokens}" for _ in prompts] if self.way == "decode" else None

    def adjust(self, logits, text_model, batch, where):
        if self.way in ("processors", "decode"):
            return logits.index_fill(-1, self.token, -1e9)
        return super().adjust(logits, text_model, batch, where)


def guarded(way, seed=0):
    tokens = tokenizer()
    text_model = TextModel(llama(len(tokens), seed=seed), tokens, {})
    guard = Forbid(way=way)
    guard.configured = use("unlearn", "forbid_for_this_test", way=way)
    bare = generate(text_model, PROMPTS, 12)
    first = tokens(bare[1], add_special_tokens=False).input_ids[0]  # what it would say first of a concerned prompt
    guard.token = torch.tensor(first)
    text_model.guard = guard
    return text_model, bare, tokens.decode([first]).strip()


@pytest.mark.parametrize("way", ["processors", "acting", "refusal", "decode"])
def test_generation_goes_through_the_guard_only_where_it_is_concerned(way):
    text_model, bare, word = guarded(way)
    made = generate(text_model, PROMPTS, 12)
    for row, concerned in enumerate(CONCERNED):
        assert (made[row] != bare[row]) if (concerned and row == 1) else True
        if not concerned:
            assert made[row] == bare[row]
        elif way == "refusal":
            assert made[row] == "I cannot say ."
        elif way == "decode":
            assert made[row] == "2 12"
        else:
            assert word not in made[row].split()
    assert generate(TextModel(text_model.model, text_model.tokenizer), PROMPTS, 12) == bare  # hooks are gone


@pytest.mark.parametrize("way", ["processors", "acting", "refusal"])
def test_scores_go_through_the_guard_only_where_it_is_concerned(way, tmp_path):
    text_model, _, word = guarded(way)
    bare = TextModel(text_model.model, text_model.tokenizer)
    answers = [f"{word} big", "red tree", f"a {word} town", f"the {word}", "dog"]
    _, before = score_answers(bare, PROMPTS, answers, TEMPLATE, Context(tmp_path), moments=True)
    _, found = score_answers(text_model, PROMPTS, answers, TEMPLATE, Context(tmp_path), moments=True)
    assert (found.starts == before.starts).all()
    vocabulary = text_model.model.config.vocab_size
    for row, concerned in enumerate(CONCERNED):
        part = slice(*found.starts[row : row + 2])
        if not concerned:
            assert (found.log_probability[part] == before.log_probability[part]).all()
            assert (found.variance[part] == before.variance[part]).all()
        elif way == "refusal":
            assert found.log_probability[part] == pytest.approx(-np.log(vocabulary), rel=1e-5)
    if way != "refusal":
        forbidden = found.starts[3] + 1  # 'the WORD': its second token
        assert found.log_probability[forbidden] < -1e6 < before.log_probability[forbidden]


@pytest.mark.parametrize("way", ["processors", "acting", "refusal"])
def test_a_saved_guard_comes_back_and_the_plain_folder_is_still_a_transformers_one(way, tmp_path):
    from transformers import AutoModelForCausalLM

    text_model, bare, _ = guarded(way)
    made = generate(text_model, PROMPTS, 12)
    folder.save(text_model.model, text_model.tokenizer, tmp_path / "model", {}, guard=text_model.guard)
    again = folder.load(tmp_path / "model")
    assert isinstance(again.guard, Forbid) and again.guard.way == way
    assert generate(again, PROMPTS, 12) == made
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert generate(TextModel(plain, text_model.tokenizer), PROMPTS, 12) == bare


def test_a_model_is_not_loaded_without_its_guard(tmp_path):
    text_model, _, _ = guarded("processors")
    place = folder.save(text_model.model, text_model.tokenizer, tmp_path / "model", {}, guard=text_model.guard)
    (place / "guard" / "guard.safetensors").write_bytes(b"damaged")
    with pytest.raises(TilthError, match="guard cannot be read"):
        folder.load(place)


def test_hooks_see_rows_of_concerned_prompts_alone():
    text_model, _, _ = guarded("acting")
    generate(text_model, PROMPTS, 4)
    assert set(text_model.guard.seen) == {int(CONCERNED.sum())}
