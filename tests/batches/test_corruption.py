"""Three ways of hiding tokens: what is seen, what is asked, and that nothing leaks."""

import pytest
import torch

from tilth.batches.patches.corruption import NEXT, NEXT_ALL, RANDOM, at, corrupted, drawn, spread
from tilth.batches.patches.patchify import grid_of, patchify, unpatchify
from tilth.noise import Noise

PATCH = (2, 8, 8)


def keys(count, first=0):
    return torch.from_numpy(Noise(3, torch.arange(first, first + count).numpy()).keys())


def test_tokens_are_counted_and_ordered_as_the_paper_has_them():
    assert grid_of((16, 160, 160), (4, 16, 16)) == (4, 10, 10)  # 400 tokens
    volume = torch.arange(8 * 32 * 32.0).reshape(1, 1, 8, 32, 32)
    tokens = patchify(volume, PATCH)
    assert tokens.shape == (1, 64, 128) and torch.equal(unpatchify(tokens, (4, 4, 4), PATCH), volume)
    assert tokens[0, 1, 0] == volume[0, 0, 0, 0, 8] and tokens[0, 4, 0] == volume[0, 0, 0, 8, 0]
    assert tokens[0, 16, 0] == volume[0, 0, 2, 0, 0]


@pytest.mark.parametrize("fill", ["noise", "zero"])
@pytest.mark.parametrize("way", [NEXT, NEXT_ALL])
def test_what_comes_after_the_cut_leaves_no_trace(way, fill):
    cut = torch.tensor([5, 63, 1])
    corruption = at(torch.full((3,), way), cut, torch.zeros(3, 64, dtype=torch.bool))
    first = torch.rand(3, 1, 8, 32, 32)
    after = (torch.arange(64) >= cut[:, None])[:, :, None]
    second = unpatchify(torch.where(after, torch.rand(3, 64, 128), patchify(first, PATCH)), (4, 4, 4), PATCH)
    shown = [corrupted(values, corruption.hidden, PATCH, keys(3), fill) for values in (first, second)]
    assert torch.equal(*shown)
    before = patchify(shown[0], PATCH)
    assert all(torch.equal(before[n, :k], patchify(first, PATCH)[n, :k]) for n, k in enumerate(cut.tolist()))
    assert not torch.equal(shown[0], first)


def test_what_is_asked_is_the_first_hidden_token_or_all_of_them():
    cut, none = torch.tensor([7, 7, 63, 63]), torch.zeros(4, 64, dtype=torch.bool)
    corruption = at(torch.tensor([NEXT, NEXT_ALL, NEXT, NEXT_ALL]), cut, none)
    assert corruption.target[0].nonzero().flatten().tolist() == [7]
    assert corruption.target[1].nonzero().flatten().tolist() == list(range(7, 64))
    assert torch.equal(corruption.target[2], corruption.target[3])  # with one token left both are the same
    # Random that hides all from 7 on is next all.
    scattered = (torch.arange(64) >= 7).expand(4, -1)
    same = at(torch.full((4,), RANDOM), torch.ones(4, dtype=torch.long), scattered)
    assert torch.equal(same.hidden[0], corruption.hidden[1]) and torch.equal(same.target[0], corruption.target[1])


def test_shares_and_counts_are_those_asked_for():
    made = drawn(keys(6000), 64, (0.5, 0.25, 0.25), (0.4, 0.4))
    shares = [(made.way == way).float().mean().item() for way in (RANDOM, NEXT, NEXT_ALL)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    counts = made.target.sum(1).float()
    assert set(counts[made.way == RANDOM].tolist()) == {25.0}  # int(0.4 * 64)
    assert set(counts[made.way == NEXT].tolist()) == {1.0}
    assert counts[made.way == NEXT_ALL].mean().item() == pytest.approx(32, abs=1.5)  # half of the tokens
    cuts = made.hidden.long().argmax(1)[made.way != RANDOM]
    assert cuts.min() == 1 and cuts.max() == 63
    assert not (made.target & ~made.hidden).any()
    often = made.hidden[made.way == RANDOM].float().mean(0)
    assert (often - 25 / 64).abs().max() < 0.05  # every token as often


def test_a_range_of_shares_is_used_whole():
    counts = drawn(keys(3000), 100, (1.0, 0.0, 0.0), (0.2, 0.8)).target.sum(1)
    assert counts.min() <= 22 and counts.max() >= 77 and counts.float().mean().item() == pytest.approx(50, abs=2)


def test_noise_has_mean_0_and_variance_1_and_lies_only_where_hidden():
    values = torch.full((8, 1, 8, 32, 32), 0.5)
    hidden = drawn(keys(8), 64, (1.0, 0.0, 0.0), (0.4, 0.4)).hidden
    made = corrupted(values, hidden, PATCH, keys(8), "noise")
    where = spread(hidden, values, PATCH)
    assert where.shape == values.shape and where.float().mean().item() == pytest.approx(25 / 64)
    assert made[where].mean().abs() < 0.02 and made[where].var().item() == pytest.approx(1, abs=0.03)
    assert (made[~where] == 0.5).all()
    assert (corrupted(values, hidden, PATCH, keys(8), "zero")[where] == 0).all()


def test_an_example_is_corrupted_alike_in_any_company():
    alone, among = drawn(keys(1, 5), 64, (1, 1, 1), (0.2, 0.8)), drawn(keys(8), 64, (1, 1, 1), (0.2, 0.8))
    assert torch.equal(alone.hidden[0], among.hidden[5]) and alone.way[0] == among.way[5]
