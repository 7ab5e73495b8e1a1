import pytest
import torch

from tilth.errors import TilthError
from tilth.unlearn.corruption import corrupt

E = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(0))
WHERE = torch.zeros(3, 7, dtype=torch.bool)
WHERE[0, 2:5] = True
WHERE[2, 0] = WHERE[2, 6] = True
DIMENSIONS = ["first", "random", "largest"]


def spoil(how, strength, embeddings=E, where=WHERE, seed=3, **settings):
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(embeddings))]
    return corrupt(embeddings, where, how, torch.tensor([float(strength)]), generators, **settings)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("how", ["noise", "zero", "flip", "shift"])
def test_without_strength_nothing_changes(how, dimensions):
    assert torch.equal(spoil(how, 0, dimensions=dimensions, count=4), E)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize(("how", "strength"), [("noise", 2.0), ("zero", 4), ("flip", 4), ("shift", -1.5)])
def test_only_the_chosen_tokens_change_and_in_them_only_so_many_dimensions(how, strength, dimensions):
    before = E.clone()
    changed = spoil(how, strength, dimensions=dimensions, count=4) != E
    assert torch.equal(E, before)
    assert torch.equal(changed.sum(-1), 4 * WHERE.long())
    if dimensions == "first":
        assert changed[WHERE][:, :4].all()
    if dimensions == "largest":
        assert (E.abs().masked_fill(changed, 0).amax(-1) <= E.abs().masked_fill(~changed, 99).amin(-1))[WHERE].all()
    if dimensions == "random":  # the same ones in a row, others in another
        assert (changed[0, 2] == changed[0, 4]).all() and not torch.equal(changed[0, 2], changed[2, 0])


def test_flipping_twice_gives_back_and_flipping_everything_negates():
    for dimensions in DIMENSIONS:
        assert torch.equal(spoil("flip", 5, spoil("flip", 5, dimensions=dimensions), dimensions=dimensions), E)
    assert torch.equal(spoil("flip", 12, dimensions="largest")[WHERE], -E[WHERE])


def test_zeroing_every_dimension_leaves_nothing():
    for strength in (12, 40):
        out = spoil("zero", strength, dimensions="largest")
        assert (out[WHERE] == 0).all() and torch.equal(out[~WHERE], E[~WHERE])


def test_the_deviation_of_the_noise_is_its_strength():
    zeros, everywhere = torch.zeros(1, 10_000, 4), torch.ones(1, 10_000, dtype=torch.bool)
    out = spoil("noise", 50.0, zeros, everywhere, count=2)
    assert out[..., :2].std(1).squeeze() == pytest.approx([50, 50], rel=0.03) and (out[..., 2:] == 0).all()
    each = corrupt(zeros, everywhere, "noise", torch.tensor([1.0, 9.0]), [torch.Generator().manual_seed(0)], count=2)
    assert each[..., :2].std(1).squeeze() == pytest.approx([1, 9], rel=0.03)


def test_a_shift_is_the_same_for_every_chosen_token():
    assert torch.allclose((spoil("shift", 2.5, count=3) - E)[WHERE][:, :3], torch.tensor(2.5), atol=1e-6)


def test_reordering_moves_chosen_tokens_among_their_own_places():
    back = spoil("reverse", 0)
    assert torch.equal(back[0, 2:5], E[0, 2:5].flip(0)) and torch.equal(back[2, [0, 6]], E[2, [6, 0]])
    shuffled = spoil("shuffle", 0)
    for out in (back, shuffled):
        assert torch.equal(out[~WHERE], E[~WHERE])
        assert torch.equal(out[0].sort(0).values, E[0].sort(0).values)


def test_noise_is_a_function_of_the_seed_and_of_the_place_in_the_prompt_alone():
    assert torch.equal(spoil("noise", 1.0), spoil("noise", 1.0)) and not torch.equal(
        spoil("noise", 1.0), spoil("noise", 1.0, seed=9)
    )
    padded = torch.cat([torch.zeros(3, 2, 12), E], 1)
    shifted = spoil("noise", 1.0, padded, torch.cat([torch.zeros(3, 2, dtype=torch.bool), WHERE], 1))
    assert torch.equal(shifted[:, 2:], spoil("noise", 1.0))


def test_an_unknown_corruption_is_an_error():
    with pytest.raises(TilthError, match="no corruption 'blur'"):
        spoil("blur", 1)
