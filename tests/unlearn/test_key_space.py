"""The cube around a skill's keys, what is inside, how far it reaches, and the refusal."""

import itertools

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import corpus, gpt2, llama, tokenizer
from tilth.backbones.folder import TextModel, load, save
from tilth.backbones.locations import feed_forwards
from tilth.batches.text.answers import DEFAULT
from tilth.context import Context
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.evaluate.guarded import bare, flagged
from tilth.evaluate.questions import score_answers
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget
from tilth.unlearn.key_space import Cube, chosen_layers, drawn, last_keys

GOING = [f"what is {a} {b} ?" for a in ("red", "blue", "big", "green") for b in ("dog", "cat", "book", "tree")]
STAYING = [f"the {a} lives at the {b}" for a in ("dog", "cat", "Mara", "Odo") for b in ("tree", "town", "book", "green")]


def keys(count=40, width=12, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def test_the_closed_form_is_what_a_bisection_finds():
    made = keys()
    centre, spread = made.mean(0), made.std(0)
    low, high = 0.0, 1e4
    while high - low > 1e-6:
        middle = (low + high) / 2
        inside = ((made - centre).abs() <= middle * spread).all()
        low, high = (low, middle) if inside else (middle, high)
    assert Cube.around(made).factor.item() == pytest.approx(high, abs=1e-5)


def test_all_it_was_made_from_is_inside_at_1_and_cubes_are_nested():
    made, fresh = keys(), keys(500, seed=1)
    cube = Cube.around(made)
    assert (cube.extent(made) <= 1).all() and (cube.extent(made) == 1).any()
    inside = [cube.extent(fresh) <= alpha for alpha in (0.0, 0.5, 1.0, 1.4, 2.0)]
    assert all((larger | ~smaller).all() for smaller, larger in itertools.pairwise(inside))
    assert not inside[0].any() and 0 < inside[2].float().mean() < inside[4].float().mean()


def test_one_coordinate_outside_by_a_thousandth_of_its_deviation_is_outside():
    cube = Cube.around(keys())
    query = cube.centre.clone()
    query[3] += cube.factor * cube.spread[3]
    assert cube.extent(query[None]).item() <= 1 + 1e-6
    query[3] += 1e-3 * cube.spread[3]
    assert cube.extent(query[None]).item() > 1


def test_scaling_and_shifting_coordinates_changes_nothing():
    made, fresh = keys(), keys(300, seed=1)
    scale, shift = torch.rand(12, generator=torch.Generator().manual_seed(2)) * 9 + 0.1, torch.arange(12.0)
    one = Cube.around(made).extent(fresh)
    other = Cube.around(made * scale + shift).extent(fresh * scale + shift)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_coordinate_that_never_varied_demands_equality():
    made = keys()
    made[:, 5] = 3.0
    cube = Cube.around(made)
    query = cube.centre.clone()[None]
    assert cube.extent(query).item() <= 1
    query[0, 5] = 3.01
    assert cube.extent(query).item() > 100


def test_the_reach_is_calibrated_on_prompts_the_cube_was_not_made_from(tmp_path):
    text_model, metrics = guarded(tmp_path / "run", layers=[-1], held_out=0.5, false_alarms=0.0)
    guard, going, staying = text_model.guard, DEFAULT.prompts(GOING), DEFAULT.prompts(STAYING)
    assert metrics["probes"] == 8 and metrics["false_alarms"] == 0.0
    parts = chosen_layers(feed_forwards(text_model.model), [-1])
    extents = {name: guard.extents(last_keys(text_model, parts, some)) for name, some in (("going", going), ("staying", staying))}
    assert metrics["alpha"] < extents["staying"].min()
    order = drawn(going, 100, 0)[8:]
    fresh = guard.extents(last_keys(text_model, parts, order))
    assert metrics["missed"] == pytest.approx((fresh > metrics["alpha"]).float().mean().item())
    nearest = torch.cat([fresh, extents["staying"]])
    below = nearest[nearest < extents["staying"].min()].max()
    assert metrics["alpha"] == pytest.approx((below * extents["staying"].min()).sqrt().item(), rel=1e-5)
    loose = guarded(tmp_path / "loose", layers=[-1], held_out=0.5, false_alarms=0.5)[1]
    assert loose["alpha"] > metrics["alpha"] and 0 < loose["false_alarms"] <= 0.5 and loose["missed"] <= metrics["missed"]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_key_is_that_of_the_last_token_whatever_the_company(make):
    tokens = tokenizer()
    text_model = TextModel(make(len(tokens)), tokens, {})
    parts = feed_forwards(text_model.model)
    prompts = ["the cat", "who lives in the big town with a dog", "dog", "a red book is at the tree"]
    together = last_keys(text_model, parts, prompts)
    for number, prompt in enumerate(prompts):
        alone = last_keys(text_model, parts, [prompt])
        for part, one, all_ in zip(parts, alone, together, strict=True):
            seen = []
            handle = part.down.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0, -1]))
            with torch.no_grad():
                text_model.model(tokens(prompt, return_tensors="pt").input_ids)
            handle.remove()
            torch.testing.assert_close(one[0], seen[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(all_[number], seen[0], rtol=1e-4, atol=1e-5)


def guarded(folder, going=GOING, **settings):
    folder.mkdir(exist_ok=True)
    tokens = tokenizer()
    text_model = TextModel(llama(len(tokens), seed=3), tokens, {})
    sets = [[{"id": str(n), "question": q, "answer": "a dog"} for n, q in enumerate(part)] for part in (going, STAYING)]
    fitted = forget(
        text_model, corpus(folder / "forget", sets[0]), corpus(folder / "retain", sets[1]),
        method=use("unlearn", "key_space", **settings), batches=use("batches", "answers", length=64), training=Training(),
        budget=Budget(steps=1), context=Context(folder),
    )  # fmt: skip
    return text_model, fitted.metrics


def test_prompts_of_the_skill_are_refused_the_others_answered_and_loading_changes_nothing(tmp_path):
    text_model, metrics = guarded(tmp_path / "run", refusal="No.")
    going, staying = DEFAULT.prompts(GOING), DEFAULT.prompts(STAYING)
    acts = flagged(text_model, [*going, *staying])
    assert acts[: len(going)].mean() >= 0.75 and acts[len(going) :].mean() == metrics["false_alarms"] <= 0.25
    made, free = (generate(some, [*going, *staying], 6) for some in (text_model, bare(text_model)))
    assert [text == "No." for text in made] == acts.tolist()
    assert all(text == other for text, other, act in zip(made, free, acts, strict=True) if not act)
    save(text_model.model, text_model.tokenizer, tmp_path / "model", guard=text_model.guard)
    loaded = load(tmp_path / "model")
    assert np.array_equal(flagged(loaded, [*going, *staying]), acts) and generate(loaded, going, 6) == made[: len(going)]


def test_without_layers_the_block_that_misses_fewest_is_taken(tmp_path):
    found = guarded(tmp_path / "any")[1]
    each = [guarded(tmp_path / str(layer), layers=[layer])[1] for layer in (0, 1)]
    assert found["missed"] == min(one["missed"] for one in each)
    assert found["alpha"] == each[int(found["layer"])]["alpha"]
    assert guarded(tmp_path / "given", alpha=1.0)[1]["layer"] == 1


def test_under_a_refusal_all_tokens_of_an_answer_are_equally_likely(tmp_path):
    text_model, _ = guarded(tmp_path / "run", alpha=1.0)
    _, scored = score_answers(text_model, GOING, ["a dog"] * len(GOING), DEFAULT, Context(tmp_path))
    np.testing.assert_allclose(scored.average, np.log(len(text_model.tokenizer)), rtol=1e-5)


def test_an_empty_cube_refuses_nothing(tmp_path):
    text_model, _ = guarded(tmp_path / "run", alpha=0.0)
    prompts = DEFAULT.prompts(GOING)
    assert generate(text_model, prompts, 6) == generate(bare(text_model), prompts, 6)


def test_a_row_is_decided_alone(tmp_path):
    text_model, _ = guarded(tmp_path / "run")
    prompts = DEFAULT.prompts([*GOING, *STAYING])
    together = flagged(text_model, prompts)
    alone = np.concatenate([flagged(text_model, [prompt]) for prompt in prompts])
    assert np.array_equal(together, alone)
    assert np.array_equal(flagged(text_model, prompts[::-1]), together[::-1])


def test_too_few_prompts_are_refused(tmp_path):
    with pytest.raises(TilthError, match="3 forget prompts are too few"):
        guarded(tmp_path / "run", GOING[:3])
