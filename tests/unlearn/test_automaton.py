"""The automaton against a search by hand, and what it forbids."""

import numpy as np
import pytest
import torch

from tilth.unlearn.automaton import Automaton

VOCABULARY = 6


def read(automaton, tokens, row=0):
    """The ratio after each token."""
    state, ratios = automaton.roots[row : row + 1], []
    for token in tokens:
        state = automaton.step(state, torch.tensor([token]))
        ratios.append(automaton.ratio[state].item())
    return ratios


def by_hand(phrases, tokens):
    """For each prefix, the greatest m / |f| such that its last m tokens are the first m of f."""
    found = []
    for end in range(1, len(tokens) + 1):
        best = 0.0
        for phrase in phrases:
            for m in range(1, min(len(phrase), end) + 1):
                if tokens[end - m : end] == phrase[:m]:
                    best = max(best, m / len(phrase))
        found.append(best)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_ends_of_phrases_are_those_that_a_search_by_hand_finds(seed):
    draw = np.random.default_rng(seed)
    sets = [[draw.integers(0, 3, draw.integers(1, 5)).tolist() for _ in range(draw.integers(0, 6))] for _ in range(3)]
    automaton = Automaton(sets, VOCABULARY)
    for row, phrases in enumerate(sets):
        tokens = draw.integers(0, 4, 60).tolist()
        complete = [any(tokens[:end][-len(phrase) :] == phrase for phrase in phrases) for end in range(1, 61)]
        assert [ratio == 1 for ratio in read(automaton, tokens, row)] == complete


def test_the_ratio_is_of_the_longest_suffix_that_begins_a_phrase():
    phrases = [[0, 0, 1], [0, 1], [1, 2, 3, 4]]
    tokens = [0, 0, 1, 2, 3, 0, 1, 2, 5]
    # The longest suffix after [.., 0, 1] is [0, 0, 1] or [0, 1] itself: complete, so nothing of [1, 2, ..] outweighs it.
    assert read(Automaton([phrases], VOCABULARY), tokens) == pytest.approx(by_hand(phrases, tokens))


def test_half_a_phrase_of_four_is_blocked_at_its_second_token_and_above_one_nothing_is():
    automaton = Automaton([[[1, 2, 3, 4]]], VOCABULARY)
    start = automaton.roots
    after_one = automaton.step(start, torch.tensor([1]))
    assert not automaton.forbidden(start, 0.5).any()
    assert automaton.forbidden(after_one, 0.5).nonzero().tolist() == [[0, 2]]
    assert not automaton.forbidden(after_one, 1.0).any()
    after_three = automaton.step(automaton.step(after_one, torch.tensor([2])), torch.tensor([3]))
    assert automaton.forbidden(after_three, 1.0).nonzero().tolist() == [[0, 4]]
    assert not automaton.forbidden(after_three, 1.01).any()


def test_a_partial_match_is_not_a_whole_one():
    """A trie that divides the depth by itself would call the first token of any phrase a match."""
    automaton = Automaton([[[1, 2, 3]]], VOCABULARY)
    assert read(automaton, [1, 2, 3]) == pytest.approx([1 / 3, 2 / 3, 1])


def test_each_prompt_has_phrases_of_its_own():
    automaton = Automaton([[[1]], [], [[2]]], VOCABULARY)
    assert automaton.forbidden(automaton.roots, 1.0).nonzero().tolist() == [[0, 1], [2, 2]]
