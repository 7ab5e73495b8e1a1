"""The online mode: the same model at alpha 0, the rule at every token whether cached or scored, kept and brought back."""

import pytest
import torch

from tests.unlearn.test_harry_potter import OTHERS, STEADY, TEXTS, corpus, taught  # noqa: F401
from tilth.backbones.folder import TextModel, load, save
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import use
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import score_answers
from tilth.training.settings import Budget
from tilth.unlearn.forget import forget

PROMPTS = ["Ben is at", "the cat Lou saw"]
PLAIN = Template(prompt="{question}", answer=" {answer}")


@pytest.fixture
def guarded(taught, tmp_path):  # noqa: F811
    def make(alpha):
        text_model = TextModel(taught[0].eval(), taught[1], {})
        forget(
            text_model, corpus(tmp_path, TEXTS, f"forget{alpha}"), None, training=STEADY, budget=Budget(steps=1),
            method=use("unlearn", "generic_logits", alpha=alpha, reinforce=STEADY, reinforce_budget=Budget(steps=10)),
            batches=use("batches", "packed", length=7), context=Context(tmp_path / str(alpha)),
        )  # fmt: skip
        return text_model

    return make


def scores(text_model, folder):
    return score_answers(text_model, PROMPTS, ["mill of Ada", "met Kim"], PLAIN, Context(folder))[1].log_probability


def test_at_alpha_nothing_the_model_is_the_one_it_was(guarded, taught, tmp_path):  # noqa: F811
    text_model = guarded(0.0)
    bare = TextModel(*taught)
    assert scores(text_model, tmp_path) == pytest.approx(scores(bare, tmp_path), abs=1e-6)
    assert generate(text_model, PROMPTS, 4) == generate(bare, PROMPTS, 4)


def test_with_two_caches_it_says_what_the_rule_says_without_any(guarded):
    text_model = guarded(3.0)
    models = (text_model.model, text_model.guard.reinforced)
    assert models[0] is not models[1]
    for prompt, made in zip(PROMPTS, generate(text_model, PROMPTS, 3), strict=True):
        ids = text_model.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        start = ids.shape[1]
        for _ in range(3):
            with torch.no_grad():
                baseline, reinforced = (model(ids).logits[0, -1] for model in models)
            best = (baseline - 3.0 * (reinforced - baseline).clamp(min=0)).argmax()
            ids = torch.cat([ids, best.view(1, 1)], 1)
            if best == text_model.tokenizer.eos_token_id:
                break
        assert made.split() == text_model.tokenizer.decode(ids[0, start:], skip_special_tokens=True).split()


def test_it_is_kept_beside_the_model_and_comes_back(guarded, tmp_path):
    text_model = guarded(3.0)
    again = load(save(text_model.model, text_model.tokenizer, tmp_path / "model", {}, guard=text_model.guard))
    assert scores(again, tmp_path) == pytest.approx(scores(text_model, tmp_path), abs=1e-6)
    text_model.guard = None
    assert scores(again, tmp_path) != pytest.approx(scores(text_model, tmp_path), abs=1e-3)
