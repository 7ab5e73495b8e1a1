"""TokenUnify: what each example is asked for, what reaches the network, and learning."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.seg_mamba import SegMambaBackbone
from tilth.batches.patches.corruption import NEXT, NEXT_ALL, RANDOM
from tilth.batches.patches.patchify import patchify, unpatchify
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.noise import Noise
from tilth.pretrain.images.token_unify import TokenUnify

PATCH = (1, 4, 4)
PLAIN = {"patch": PATCH, "views": use("views", "none")}


class Told(nn.Module):
    """A network that has seen it all, and says `answer` (batch, 1, *size), as logits; keeps what it is shown."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.given = nn.Parameter(answer), None

    def forward(self, pixel_values):
        self.given = pixel_values
        return SemanticSegmenterOutput(logits=self.answer.expand_as(pixel_values))


def volumes(count=6):
    torch.manual_seed(0)
    pixels = torch.rand(count, 1, 2, 8, 8) * 0.98 + 0.01
    return Batch(pixel_values=pixels, keys=torch.from_numpy(Noise(0, torch.arange(count).numpy()).keys()))


def by_hand(made, batch, answer):
    """The loss, example by example and token by token."""
    _, _, corruption, _ = made.asked(batch)
    squared = patchify((answer.sigmoid() - batch.pixel_values) ** 2, PATCH).mean(2)
    each = []
    for errors, way, hidden in zip(squared, corruption.way, corruption.hidden, strict=True):
        places = hidden.nonzero().flatten().tolist()
        if way == NEXT:
            assert places == list(range(places[0], 8))  # 2 x 2 x 2 tokens
            places = places[:1]
        each.append(sum(errors[place] for place in places) / len(places))
    return sum(each) / len(each)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_the_loss_is_that_of_the_tokens_asked_for(weights):
    batch, answer = volumes(12), torch.randn(1, 1, 2, 8, 8)
    made = TokenUnify(Told(answer), **dict(zip(("random", "next", "next_all"), weights, strict=True)), **PLAIN)
    ways = {RANDOM, NEXT, NEXT_ALL} if sum(weights) == 3 else {weights.index(1)}
    assert set(made.asked(batch)[2].way.tolist()) == ways
    loss = made(batch)
    assert loss.count == 12 and torch.allclose(loss.total, by_hand(made, batch, answer), rtol=1e-5)


def test_only_tokens_asked_for_have_a_gradient():
    batch = volumes(4)
    for weights, on in (({"random": 0, "next_all": 0}, "all"), ({"random": 0, "next": 0}, "target")):
        answer = torch.randn(4, 1, 2, 8, 8)
        made = TokenUnify(Told(answer), loss_on=on, **weights, **PLAIN)
        made(batch).total.backward()
        touched = patchify(made.model.answer.grad, PATCH).any(2)
        assert torch.equal(touched, made.asked(batch)[2].target)
    everywhere = TokenUnify(Told(torch.randn(4, 1, 2, 8, 8)), loss_on="all", next=0, **PLAIN)
    everywhere(batch).total.backward()
    assert everywhere.model.answer.grad.ne(0).all()


def test_the_network_is_not_shown_what_it_is_asked_for():
    batch = volumes()
    made = TokenUnify(Told(torch.zeros(1, 1, 2, 8, 8)), **PLAIN)
    made(batch)
    first, hidden = made.model.given.clone(), made.asked(batch)[2].hidden
    other = patchify(batch.pixel_values, PATCH).clone()
    other[hidden] = torch.rand_like(other[hidden])
    made(Batch(pixel_values=unpatchify(other, (2, 2, 2), PATCH), keys=batch["keys"]))
    assert torch.equal(made.model.given, first)
    visible = patchify(first, PATCH)[~hidden]
    assert torch.equal(visible, patchify(batch.pixel_values, PATCH)[~hidden])


def test_degraded_examples_are_those_hidden_at_random_and_the_target_stays_clean():
    batch = volumes(60)
    made = TokenUnify(Told(torch.zeros(1, 1, 2, 8, 8)), degrade=1.0, **PLAIN)
    pixels, values, corruption, shown = made.asked(batch)
    assert torch.equal(pixels, batch.pixel_values) and torch.equal(values, pixels)
    seen = ~corruption.hidden[:, :, None].expand(-1, -1, 16)
    changed = ((patchify(shown, PATCH) != patchify(pixels, PATCH)) & seen).flatten(1).any(1)
    assert not changed[corruption.way != RANDOM].any() and changed[corruption.way == RANDOM].float().mean() > 0.7


def test_linear_outputs_are_in_units_of_the_datas_deviation():
    given = Batch(pixel_values=volumes(4).pixel_values * 200 + 1000, keys=volumes(4)["keys"])
    backbone = SegMambaBackbone(widths=(4,), depths=(0,), hidden=4)
    network = backbone.build(Sample(1, (2, 8, 8), (1100.0,), (57.0,)))
    with pytest.raises(TilthError, match=r"mean 1\.1e\+03"):
        TokenUnify(network, **PLAIN)
    made = TokenUnify(network, output="linear", fill="zero", **PLAIN).eval()
    _, values, corruption, shown = made.asked(given)
    assert values.abs().max() < 4 and torch.allclose(values * 57 + 1100, given.pixel_values)
    assert (patchify(shown, PATCH)[corruption.hidden] == 1100).all()  # the mean is what says nothing
    assert made(given).total.item() == pytest.approx(1.0, abs=0.9)


def test_networks_of_another_number_of_outputs_and_empty_mixtures_are_refused():
    network = SegMambaBackbone(outputs=3, widths=(4,), depths=(0,), hidden=4).build(Sample(1, (2, 8, 8), (0.5,), (0.2,)))
    with pytest.raises(TilthError, match="as many outputs"):
        TokenUnify(network, **PLAIN)(volumes())
    with pytest.raises(TilthError, match="nothing is asked"):
        TokenUnify(network, random=0, next=0, next_all=0, **PLAIN)
    with pytest.raises(TilthError, match=r"values in \[0, 1\]"):
        TokenUnify(network, output="linear", degrade=0.5, **PLAIN)
    with pytest.raises(TilthError, match="no range"):
        TokenUnify(network, mask_ratio=(0.8, 0.2), **PLAIN)


def test_a_network_learns_to_rebuild_and_pictures_show_it():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 8).expand(2, 8, 8)
    shades = torch.rand(16, 1, 1, 1, 1) * 0.5
    batch = Batch(pixel_values=(0.5 * ramp + shades), keys=torch.from_numpy(Noise(0, torch.arange(16).numpy()).keys()))
    network = SegMambaBackbone(widths=(8, 16), depths=(0, 1), hidden=16).build(Sample(1, (2, 8, 8), (0.5,), (0.2,)))
    made = TokenUnify(network, **PLAIN)
    optimiser = torch.optim.AdamW(made.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        loss = made(batch).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    rows = made.eval().pictures(batch)
    assert len(rows) == 16 and all(len(row) == 3 and row[0].shape == (1, 2, 8, 8) for row in rows)
    assert all(torch.isfinite(part).all() for row in rows for part in row)
