import math

import pytest
import torch

from tilth.unlearn.logit_difference import combined, plausible

TARGET = 3 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHER = 2 * torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("share", [None, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("weight", [0.0, -0.8, -5.0])
def test_an_assistant_that_knows_nothing_changes_nothing(share, weight):
    flat = torch.full_like(TARGET, 7.3)
    out = combined(TARGET, flat, weight, share=share).softmax(-1)
    torch.testing.assert_close(out, TARGET.softmax(-1), atol=1e-6, rtol=0)


def test_without_centring_the_filter_sets_plausible_tokens_against_the_others():
    flat = torch.full_like(TARGET, 7.3)
    off = combined(TARGET, flat, -0.8, share=0.1, centred=False).softmax(-1) - TARGET.softmax(-1)
    assert off.abs().max() > 0.01
    torch.testing.assert_close(
        combined(TARGET, flat, -0.8, share=None, centred=False).softmax(-1), TARGET.softmax(-1), atol=1e-6, rtol=0
    )


def test_weight_zero_is_the_target():
    for share in (None, 0.1):
        assert torch.equal(combined(TARGET, OTHER, 0.0, share=share), TARGET)


def test_what_is_subtracted_without_bound_vanishes_and_leaves_all_other_odds():
    known = torch.zeros_like(TARGET)
    known[:, 3] = 1.0
    out, before = combined(TARGET, known, -1e4, share=None).softmax(-1), TARGET.softmax(-1)
    others = torch.arange(40) != 3
    assert out[:, 3].max() < 1e-12
    torch.testing.assert_close(out[:, others], before[:, others] / before[:, others].sum(-1, keepdim=True))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 1.0])
def test_plausible_tokens(share):
    kept = plausible(TARGET, share)
    most = max(1, math.floor(share * 40))
    assert kept.gather(1, TARGET.argmax(1, keepdim=True)).all() and (kept.sum(1) >= most).all()
    log_probability = TARGET.log_softmax(-1)
    for row in range(6):  # by hand, as it is written
        bound = min(log_probability[row].max() + math.log(share), sorted(log_probability[row].tolist())[-most])
        assert torch.equal(kept[row], log_probability[row] >= bound)
    assert kept.all() == (share == 1.0)


def test_a_peaked_target_keeps_its_best_tokens_and_a_flat_one_more():
    peaked = torch.zeros(1, 40)
    peaked[0, 0], peaked[0, 1:4] = 50.0, 1.0
    assert plausible(peaked, 0.1)[0, :4].all() and plausible(peaked, 0.1).sum() == 4
    assert plausible(torch.zeros(1, 40), 0.1).all()


def test_implausible_tokens_keep_their_logits_and_the_inputs_are_not_written_to():
    target, other = TARGET.clone(), OTHER.clone()
    out, kept = combined(target, other, -0.8, share=0.05), plausible(TARGET, 0.05)
    assert torch.equal(target, TARGET) and torch.equal(other, OTHER)
    assert torch.equal(out[~kept], TARGET[~kept]) and (out[kept] != TARGET[kept]).all()
    by_hand = TARGET - 0.8 * (OTHER - OTHER.mean(-1, keepdim=True))
    torch.testing.assert_close(out[kept], by_hand[kept])
