"""Neuron Adjust's law by law, selective pruning, and the statistics both stand on."""

import copy

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import corpus, gpt2, llama, tokenizer
from tests.unlearn.doubles import ListExamples, random_rows, tiny_lm
from tilth.backbones.folder import TextModel, load, save
from tilth.backbones.locations import feed_forwards
from tilth.batches.text.answers import DEFAULT
from tilth.context import Context
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.evaluate.guarded import bare
from tilth.evaluate.questions import score_answers
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget
from tilth.unlearn.neuron_adjust import Laws, bound_of, largest
from tilth.unlearn.neurons import Moments, token_moments

FORGET = [
    ("where lives Mara", "Mara lives at the tree"),
    ("what is Mara", "Mara is red and big"),
    ("who finds Mara", "a dog finds Mara"),
]
RETAIN = [
    ("where lives Odo", "Odo lives in a town"),
    ("what plays", "a cat plays at the book"),
    ("who bakes", "Odo bakes a blue book"),
]


def laws(forget_mean=0.0, forget_spread=1.0, retain_mean=0.0, retain_spread=1.0):
    values = (torch.tensor([value]) for value in (forget_mean, forget_spread, retain_mean, retain_spread))
    return Laws(torch.tensor([0]), *values).rule()


def test_where_the_retain_law_is_likelier_nothing_ever_changes():
    both = laws(2.0, 0.7, -1.0, 1.5)
    u = torch.linspace(-6, 6, 4001)[:, None]
    likelier = both.log_ratio(u) > 0
    assert 0.2 < likelier.float().mean() < 0.9
    by_hand = torch.distributions.Normal(-1.0, 1.5).log_prob(u) - torch.distributions.Normal(2.0, 0.7).log_prob(u)
    torch.testing.assert_close(both.log_ratio(u), by_hand, atol=1e-4, rtol=1e-4)
    for xi in (0.0, 0.3, 0.999999):
        changed = both.adjust(u, bound_of(torch.full_like(u, xi))) != u
        assert not (changed & likelier).any()
    assert (both.adjust(u, bound_of(torch.full_like(u, 0.999999))) != u)[~likelier].float().mean() > 0.9


def test_the_chance_of_an_adjustment_is_that_of_the_forget_law():
    both = laws(1.0, 1.0, -1.0, 1.0)
    u = torch.full((20_000, 1), 0.4)
    chance = torch.sigmoid(-both.log_ratio(u[:1])).item()
    xi = torch.rand(u.shape, generator=torch.Generator().manual_seed(0))
    assert (both.adjust(u, bound_of(xi)) != u).float().mean().item() == pytest.approx(chance, abs=0.01)


def test_equal_laws_reflect_half_of_all():
    both = laws(0.3, 2.0, 0.3, 2.0)
    u = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0)) * 2 + 0.3
    adjusted = both.adjust(u, both.bounds[both.draws(u)])
    changed = adjusted != u
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(adjusted[changed], 2 * 0.3 - u[changed])


def test_under_the_forget_law_the_result_has_the_retain_laws_moments_in_reversed_order():
    both = laws(3.0, 0.5, -1.0, 2.0)
    u = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(1)) * 0.5 + 3.0
    mapped = both.mapped(both.standardised(u))
    assert mapped.mean().item() == pytest.approx(-1.0, abs=0.03) and mapped.std().item() == pytest.approx(2.0, abs=0.02)
    assert torch.equal(mapped[:, 0].argsort(descending=True), u[:, 0].argsort())


def test_draws_are_uniform_differ_between_neurons_and_seeds_and_are_addressed_by_the_value():
    both = Laws(torch.arange(2), *(torch.full((2,), value) for value in (0.0, 1.0, 0.0, 1.0)))
    u = torch.linspace(-90, 90, 40_000)[:, None].expand(-1, 2)
    drawn = both.rule(0, 0).draws(u)
    assert drawn.min() >= 0 and drawn.max() < len(both.rule().bounds)
    counts = torch.histc(drawn[:, 0].float(), 10, 0, len(both.rule().bounds)) / len(u)
    assert (counts - 0.1).abs().max() < 0.01
    for other in (drawn[:, 1], both.rule(1, 0).draws(u)[:, 0], both.rule(0, 1).draws(u)[:, 0]):
        assert abs(np.corrcoef(drawn[:, 0], other)[0, 1]) < 0.05
    assert torch.equal(both.rule(0, 0).draws(u[5:7]), drawn[5:7])


def test_streamed_moments_equal_those_of_everything_at_once_in_any_order():
    values = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)) * 3 + 50
    for sizes in ([1000], [1, 999], [10] * 100, [333, 0, 667]):
        parts = list(values.split(sizes))
        for order in (parts, parts[::-1]):
            found = Moments()
            for part in order:
                found.update(part)
            torch.testing.assert_close(found.mean, values.mean(0), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.spread, values.std(0), rtol=1e-4, atol=1e-4)


def test_statistics_do_not_see_padding():
    model, rows = tiny_lm().eval(), random_rows(9, seed=0)
    gates = [part.gate for part in feed_forwards(model)]
    found = token_moments(model, gates, ListExamples(rows), "output")
    seen: list[list[torch.Tensor]] = [[], []]
    for prompt, answer in rows:
        for layer, gate in enumerate(gates):
            handle = gate.register_forward_hook(lambda _, __, output, layer=layer: seen[layer].append(output[0].detach()))
            model(torch.tensor([prompt + answer]))
            handle.remove()
    for moments, values in zip(found, seen, strict=True):
        torch.testing.assert_close(moments.mean, torch.cat(values).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.spread, torch.cat(values).std(0), rtol=1e-4, atol=1e-5)


def test_the_share_is_of_all_blocks_together_and_signed():
    scores = [torch.tensor([5.0, -9.0, 1.0, 0.0]), torch.tensor([4.0, 3.0, -2.0, 2.0])]
    assert [part.tolist() for part in largest(scores, 0.5)] == [[0], [0, 1, 3]]
    assert [part.tolist() for part in largest(scores, 0.0)] == [[], []]


def unlearnt(folder, name, make=llama, **settings):
    folder.mkdir(exist_ok=True)
    tokens = tokenizer()
    text_model = TextModel(make(len(tokens)), tokens, {})
    rows = [
        [{"id": str(i), "question": question, "answer": answer} for i, (question, answer) in enumerate(part)]
        for part in (FORGET, RETAIN)
    ]
    forget(
        text_model, corpus(folder / "forget", rows[0]), corpus(folder / "retain", rows[1]),
        method=use("unlearn", name, **settings), batches=use("batches", "answers", length=64), training=Training(),
        budget=Budget(steps=1), context=Context(folder),
    )  # fmt: skip
    return text_model


def logits(text_model, prompts=("where lives Mara", "who")):
    with torch.no_grad():
        return [text_model.model(text_model.tokenizer(prompt, return_tensors="pt").input_ids).logits for prompt in prompts]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_hooks_act_and_go_and_a_share_of_0_is_the_bare_model(make, tmp_path):
    text_model = unlearnt(tmp_path / "some", "neuron_adjust", make, share=0.5)
    before = logits(text_model)
    with text_model.guard.acting(text_model):
        within = logits(text_model)
    assert not any(torch.equal(one, other) for one, other in zip(before, within, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, logits(text_model), strict=True))
    idle = unlearnt(tmp_path / "none", "neuron_adjust", make, share=0.0)
    prompts = DEFAULT.prompts([question for question, _ in FORGET])
    assert generate(idle, prompts, 8) == generate(bare(idle), prompts, 8)


def test_what_a_row_gives_depends_on_that_row_alone(tmp_path):
    text_model = unlearnt(tmp_path, "neuron_adjust", share=0.5)
    ids = torch.randint(5, 30, (4, 9), generator=torch.Generator().manual_seed(0))
    others = ids.clone()
    others[1:] = others[1:].flip(1)
    with torch.no_grad(), text_model.guard.acting(text_model):
        one, other, alone = (text_model.model(rows).logits[0] for rows in (ids, others, ids[:1]))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, alone, atol=1e-4, rtol=1e-4)


def test_a_guarded_model_is_whole_after_loading(tmp_path):
    text_model = unlearnt(tmp_path / "run", "neuron_adjust", share=0.5, layers=[-1])
    save(text_model.model, text_model.tokenizer, tmp_path / "model", guard=text_model.guard)
    loaded = load(tmp_path / "model")
    questions, answers = zip(*FORGET, strict=True)
    scored = [
        score_answers(some, questions, answers, DEFAULT, Context(tmp_path))[1].nll for some in (text_model, loaded, bare(loaded))
    ]
    assert np.array_equal(scored[0], scored[1]) and not np.allclose(scored[0], scored[2])
    assert list(loaded.guard.adjusted) == [1]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_pruning_silences_exactly_the_neurons_the_forget_set_uses_most(make, tmp_path):
    text_model = unlearnt(tmp_path, "selective_pruning", make, share=0.25)
    fresh = make(len(text_model.tokenizer))
    seen, keys = [], []
    for rows in (FORGET, RETAIN):
        parts, found = feed_forwards(fresh), []
        handles = [
            part.down.register_forward_pre_hook(lambda _, args, n=n, found=found: found.append((n, args[0][0])))
            for n, part in enumerate(parts)
        ]
        for question, answer in rows:
            text = DEFAULT.prompts([question])[0] + f" {answer}"
            fresh(torch.tensor([[*text_model.tokenizer(text).input_ids, text_model.tokenizer.eos_token_id]]))
        for handle in handles:
            handle.remove()
        keys.append([torch.cat([values for n, values in found if n == layer]).abs().mean(0) for layer in range(len(parts))])
        seen.append(found)
    importance = torch.cat([one / (other + 1e-8) for one, other in zip(*keys, strict=True)])
    silent = torch.cat([(part.values() == 0).all(1) for part in feed_forwards(text_model.model)])
    assert silent.sum() == round(0.25 * len(silent))
    assert importance[silent].min() >= importance[~silent].max() - 1e-4


def test_a_block_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TilthError, match="no block 7"):
        unlearnt(tmp_path, "neuron_adjust", layers=[7])


def test_the_model_itself_is_not_changed(tmp_path):
    text_model = unlearnt(tmp_path, "neuron_adjust", share=0.5)
    fresh = copy.deepcopy(llama(len(text_model.tokenizer))).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in text_model.model.state_dict().items())
