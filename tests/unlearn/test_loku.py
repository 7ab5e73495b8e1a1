import pytest
import torch

from tests.unlearn.doubles import lm_batch, random_rows, tiny_lm
from tilth.contracts import Batch, use
from tilth.unlearn.likelihood import answers
from tilth.unlearn.loku import LoKU, inverted_hinge


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_known_values():
    target = torch.tensor([0])
    assert inverted_hinge(logits_of(1.0, 0.0, 0.0), target).item() == pytest.approx(2.0)
    assert inverted_hinge(logits_of(0.0, 1.0, 0.0), target).item() == pytest.approx(0.0)
    assert inverted_hinge(logits_of(0.5, 0.5), target).item() == pytest.approx(1.0)
    assert inverted_hinge(logits_of(0.2, 0.3, 0.5), target).item() == pytest.approx(0.7)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_the_rival_is_the_strongest_of_the_others_wherever_the_target_stands(target):
    p = [0.5, 0.3, 0.2]
    rival = max(p[:target] + p[target + 1 :])
    assert inverted_hinge(logits_of(*p), torch.tensor([target])).item() == pytest.approx(1 + p[target] - rival)


def test_the_gradient_is_the_closed_form_and_sums_to_zero():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 11, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(11, (40,), generator=generator)
    inverted_hinge(logits, targets).sum().backward()
    p = logits.detach().softmax(-1)
    own = p.gather(1, targets[:, None])
    others = p.scatter(1, targets[:, None], -1)
    rival, where = others.max(1, keepdim=True)
    expected = p * (rival - own)
    expected.scatter_(1, targets[:, None], own * (1 - own + rival))
    expected.scatter_(1, where, -rival * (1 + own - rival))
    assert (logits.grad - expected).abs().max() < 1e-9
    assert logits.grad.sum(1).abs().max() < 1e-12


def test_logits_are_taken_as_logits():
    """Also those that could be mistaken for probabilities, and those that would overflow."""
    logits, targets = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]), torch.tensor([1, 1])
    plain = inverted_hinge(logits, targets)
    for shift in (7.0, -3.0, 1000.0):
        torch.testing.assert_close(inverted_hinge(logits + shift, targets), plain, rtol=1e-4, atol=1e-4)
    p = logits.softmax(-1)
    assert plain[0].item() == pytest.approx(1 + (p[0, 1] - p[0, 2]).item(), rel=1e-6)


def test_one_step_turns_the_target_against_its_rival_and_moves_the_others_less_than_ascent_does():
    start = torch.tensor([[2.0, 1.5, 0.3, 0.1, -0.4, 0.2]])
    target = torch.tensor([0])

    def stepped(loss):
        logits = start.clone().requires_grad_(True)
        loss(logits).backward()
        return start - 0.01 * logits.grad / logits.grad.norm()

    hinge = stepped(lambda z: inverted_hinge(z, target).sum())
    ascent = stepped(lambda z: -torch.nn.functional.cross_entropy(z, target))
    assert hinge[0, 1] - hinge[0, 0] > start[0, 1] - start[0, 0]
    assert (hinge - start)[0, 2:].abs().sum() < 0.5 * (ascent - start)[0, 2:].abs().sum()


def test_the_mean_is_over_answer_tokens_and_the_retain_term_is_added():
    model = tiny_lm()
    rows = [([3, 4], [5]), ([6, 7, 8], [9, 10, 11, 12])]
    batch = Batch(forget=lm_batch(rows), retain=lm_batch(random_rows(2, seed=1)))
    loss = LoKU(model, retain=use("retain", "cross_entropy", weight=0.5))(batch)
    logits, targets, _ = answers(model, batch.forget)
    assert len(targets) == 5
    assert loss.parts["forget"].item() == pytest.approx(inverted_hinge(logits, targets).mean().item(), rel=1e-6)
    assert loss.total.item() == pytest.approx((loss.parts["forget"] + 0.5 * loss.parts["retain"]).item(), rel=1e-6)
    assert 0 <= loss.parts["forget"].item() <= 2


def test_questions_and_padding_do_not_count():
    model = tiny_lm()
    rows = random_rows(3, seed=2)
    plain, padded = (LoKU(model)(Batch(forget=lm_batch(rows, pad=pad), retain=None)).total.item() for pad in (0, 5))
    assert padded == pytest.approx(plain, rel=1e-5)
