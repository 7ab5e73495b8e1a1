"""Constrained beam search against transformers' own, and that nothing forbidden is ever produced."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.unlearn.doubles import VOCABULARY, tiny_lm
from tilth.unlearn.automaton import Automaton
from tilth.unlearn.beams import beam_search

END = 2


def prompts(count, seed, longest=6):
    """Left-padded ids and mask."""
    draw = np.random.default_rng(seed)
    ids, mask = np.zeros((count, longest), np.int64), np.zeros((count, longest), np.int64)
    for row, length in enumerate(draw.integers(1, longest + 1, count)):
        ids[row, longest - length :] = draw.integers(3, VOCABULARY, length)
        mask[row, longest - length :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def theirs(model, ids, mask, width, new):
    made = model.generate(
        ids, attention_mask=mask, num_beams=width, max_new_tokens=new, do_sample=False, length_penalty=0.0, early_stopping=False,
        eos_token_id=END, pad_token_id=END,
    )[:, ids.shape[1] :]  # fmt: skip
    rows = made.tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("seed", range(4))
def test_without_phrases_it_is_plain_beam_search_token_for_token(width, seed):
    model = tiny_lm(seed).eval()
    if seed % 2:  # an end token that is often likely
        with torch.no_grad():
            model.lm_head.weight[END] = model.lm_head.weight[10:16].mean(0) * 4
    ids, mask = prompts(5, seed)
    automaton = Automaton([[]] * 5, VOCABULARY)
    assert beam_search(model, ids, mask, automaton, width=width, new=12, end=END) == theirs(model, ids, mask, width, 12)


class RandomTable(nn.Module):
    """A language model whose next-token logits are a random function of the last token: cheap enough for a thousand cases."""

    def __init__(self, vocabulary, generator):
        super().__init__()
        self.table = 3 * torch.randn(vocabulary, vocabulary, generator=generator)
        self.config = tiny_lm().config

    def _supports_logits_to_keep(self):
        return False

    def forward(self, input_ids, past_key_values, **_):
        if not past_key_values.get_seq_length():
            empty = torch.zeros(len(input_ids), 1, 1, 1)
            for layer in range(2):
                past_key_values.update(empty, empty, layer)
        return SimpleNamespace(logits=self.table[input_ids])


def contains(tokens, phrase):
    return any(tokens[at : at + len(phrase)] == phrase for at in range(len(tokens) - len(phrase) + 1))


def test_nothing_forbidden_is_ever_produced_in_a_thousand_cases():
    """Overlaps, prefixes of one another, single tokens, and sets that forbid every token but the end, or even that."""
    generator, draw = torch.Generator().manual_seed(0), np.random.default_rng(0)
    produced = unconstrained = 0
    for case in range(1000):
        vocabulary = int(draw.integers(4, 8))
        model = RandomTable(vocabulary, generator)
        phrases = [draw.integers(0, vocabulary, draw.integers(1, 5)).tolist() for _ in range(draw.integers(1, 12))]
        if case % 3 == 0:
            longest = max(phrases, key=len)
            phrases += [longest[1:] or longest, longest[:-1] or longest, [*longest, *longest]]
        if case % 50 == 0:
            phrases += [[token] for token in range(vocabulary)]
        width = int(draw.integers(1, 5))
        ids = torch.from_numpy(draw.integers(0, vocabulary, (1, 2)))
        arguments = {"width": width, "new": 10, "end": 2}
        [made] = beam_search(model, ids, torch.ones_like(ids), Automaton([phrases], vocabulary), **arguments)
        assert not any(contains(made, phrase) for phrase in phrases), (case, phrases, made)
        produced += len(made)
        [free] = beam_search(model, ids, torch.ones_like(ids), Automaton([[]], vocabulary), **arguments)
        unconstrained += any(contains(free, phrase) for phrase in phrases)
    assert produced > 1000 and unconstrained > 200  # the model would have said it, and still says something


def test_a_match_may_begin_with_the_first_token_and_not_within_the_prompt():
    table = RandomTable(5, torch.Generator().manual_seed(1))
    table.table = torch.full((5, 5), -5.0)
    for token, then in ((0, 3), (3, 4), (4, 3)):
        table.table[token, then] = 5.0
    ids = torch.tensor([[0]])

    def made(phrases):
        return beam_search(table, ids, torch.ones_like(ids), Automaton([phrases], 5), width=3, new=3, end=2)[0]

    assert made([]) == [3, 4, 3]
    assert made([[3, 4]])[:2] != [3, 4]
    assert made([[0, 3]]) == [3, 4, 3]  # 0 was the prompt's


def test_with_everything_pruned_by_similarity_only_the_hard_constraint_is_left_and_then_the_end():
    model = tiny_lm(3).eval()
    ids, mask = prompts(2, 0)

    def costly(beams, tokens):
        return torch.full(tokens.shape, float("inf")), torch.ones_like(tokens, dtype=torch.bool)

    forbidden = [[[token]] for token in range(3, 12)]
    phrases = [[token] for token in range(3, 12)]
    made = beam_search(model, ids, mask, Automaton([phrases, phrases], VOCABULARY), width=3, new=6, end=END, soft=costly)
    assert forbidden and all(made) and not {token for row in made for token in row} & set(range(3, 12))
    everything = [[token] for token in range(VOCABULARY)]
    assert beam_search(model, ids, mask, Automaton([everything] * 2, VOCABULARY), width=3, new=6, end=END, soft=costly) == [
        [],
        [],
    ]


def test_what_one_prompt_may_not_say_does_not_change_the_other_prompts_answers():
    model = tiny_lm(5).eval()
    ids, mask = prompts(3, 4)
    free = beam_search(model, ids, mask, Automaton([[]] * 3, VOCABULARY), width=4, new=8, end=END)
    held = beam_search(model, ids, mask, Automaton([[], [[free[1][0]]], []], VOCABULARY), width=4, new=8, end=END)
    assert [held[0], held[2]] == [free[0], free[2]] and held[1] != free[1]
