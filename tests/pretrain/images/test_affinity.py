"""Affinities by the card's exact checks, weights by hand, flips that pixels and ids share, half batches."""

from math import log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.sections import crops, sections
from tilth.context import Context
from tilth.contracts import Batch, Noise, use
from tilth.errors import TilthError
from tilth.pretrain.images.affinity import Affinity, affinities, balanced


class Given(nn.Module):
    """Gives the same logits (axes, *size) for every example."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.logits.expand(len(pixel_values), *self.logits.shape))


def batch_of(ids, pixels=None):
    pixels = torch.zeros(len(ids), 1, *ids.shape[1:]) if pixels is None else pixels
    return Batch(samples=len(ids), pixel_values=pixels, ids=ids, keys=torch.arange(len(ids)) * 7 + 3)


def test_the_affinity_of_a_constant_volume_is_1_inside():
    targets, valid = affinities(torch.full((2, 3, 4, 5), 7), (0, 1, 2))
    assert targets.shape == valid.shape == (2, 3, 3, 4, 5) and targets.dtype == torch.float32
    for axis in range(3):
        along, known = targets[:, axis].movedim(axis + 1, 0), valid[:, axis].movedim(axis + 1, 0)
        assert not known[0].any() and known[1:].all() and (along[1:] == 1).all() and not along[0].any()


def test_it_is_0_where_ids_change_or_one_is_background_and_not_known_beside_unlabelled():
    ids = torch.tensor([[[1, 1, 2, 0, 0, 2, 2, -1, -1, 3]]])
    targets, valid = affinities(ids, (1, 0))
    assert targets[0, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0, 0]
    assert valid[0, 0, 0].tolist() == [False, True, True, True, True, True, True, False, False, False]
    assert not valid[0, 1].any() and not targets[0, 1].any()
    down, _ = affinities(ids.transpose(1, 2), (0,))
    assert torch.equal(down[0, 0, :, 0], targets[0, 0, 0])


def test_a_network_of_known_logits_loses_what_a_hand_computes():
    # Along the second axis three faces are inside an object and one is not, so that one weighs 3.
    ids = torch.tensor([[[4, 4, 4, 4, 5]]])
    logits = torch.tensor([9.0, 1.0, -2.0, 0.5, 1.5]).reshape(1, 1, 5)
    loss = Affinity(Given(logits), axes=(1,), flip=0.0)(batch_of(ids))
    joined = sum(log(1 + np.exp(-logit)) for logit in (1.0, -2.0, 0.5))
    apart = log(1 + np.exp(1.5))
    assert loss.total.item() == pytest.approx((joined + 3 * apart) / 6, rel=1e-6) and loss.count.item() == 6
    assert loss.parts["accuracy"].item() == pytest.approx(2 / 6)
    plain = Affinity(Given(logits), axes=(1,), flip=0.0, weighted=False)(batch_of(ids))
    assert plain.total.item() == pytest.approx((joined + apart) / 4, rel=1e-6) and plain.count.item() == 4


def test_both_values_weigh_alike_in_every_example_and_axis():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(3, 2, 6, 7, generator=generator) < torch.tensor([0.1, 0.7, 0.95]).reshape(3, 1, 1, 1)).float()
    valid = torch.rand(targets.shape, generator=generator) < 0.8
    weight = balanced(targets, valid)
    ones, zeros = ((weight * hit).sum((2, 3)) for hit in (targets == 1, targets == 0))
    assert torch.allclose(ones, zeros) and not weight[~valid].any()
    commoner = (targets == 1) == ((targets * valid).sum((2, 3), keepdim=True) * 2 > valid.sum((2, 3), keepdim=True))
    assert (weight[commoner & valid] == 1).all()
    assert torch.equal(balanced(torch.ones(1, 1, 5), valid[:1, :1, 0, :5]), valid[:1, :1, 0, :5].float())


def test_what_is_unlabelled_changes_nothing_and_has_no_gradient():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 3, (1, 6, 6), generator=generator)
    ids[0, 2:4] = -1
    logits = torch.randn(2, 6, 6, generator=generator)
    _, valid = affinities(ids, (0, 1))
    losses = []
    for given in (logits, torch.where(valid[0], logits, 30.0)):
        made = Affinity(Given(given), flip=0.0)
        losses.append(made(batch_of(ids)).total)
        losses[-1].backward()
        assert torch.equal(made.model.logits.grad != 0, valid[0])
    assert torch.equal(*losses)
    nothing = Affinity(Given(logits))(batch_of(torch.full_like(ids, -1)))
    assert nothing.total.item() == 0 and nothing.count.item() == 0


@pytest.mark.parametrize("weighted", [True, False])
def test_parts_weighed_by_their_counts_are_the_whole(weighted):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(-1, 3, (6, 4, 6, 6), generator=generator)
    ids[1] = -1
    made = Affinity(Given(torch.randn(3, 4, 6, 6, generator=generator)), weighted=weighted, rot90=0.5)
    whole = batch_of(ids)
    parts = [made(Batch(**{name: value[a:b] for name, value in whole.items()})) for a, b in ((0, 1), (1, 2), (2, 6))]
    total = made(whole)
    assert sum(part.count for part in parts).item() == pytest.approx(total.count.item())
    assert (sum(part.total * part.count for part in parts) / total.count).item() == pytest.approx(total.total.item(), rel=1e-5)


def test_pixels_and_ids_are_flipped_and_turned_alike_and_in_training_alone():
    ids = torch.arange(1, 3 * 4 * 4 + 1).reshape(1, 3, 4, 4).repeat(64, 1, 1, 1)
    seen = []

    class Seeing(Given):
        def forward(self, pixel_values):
            seen.append(pixel_values)
            return super().forward(pixel_values)

    made = Affinity(Seeing(torch.zeros(3, 3, 4, 4)), flip=0.5, rot90=0.5)
    batch = batch_of(ids, ids[:, None].float())
    pixels, turned = made._views(batch)
    assert torch.equal(pixels[:, 0].long(), turned) and (turned != ids).flatten(1).any(1).sum() > 40
    assert torch.equal(turned[:, :, 0, 0].diff(dim=1).abs(), torch.full((64, 2), 16))  # no turn leaves the section
    made(batch)
    assert torch.equal(seen[-1], pixels)
    made.eval()(batch)
    assert torch.equal(seen[-1], batch.pixel_values)
    assert (
        len({tuple(example.flatten().tolist()) for example in turned}) == 16
    )  # eight poses of a square, each also with its sections backwards
    still = Affinity(Given(torch.zeros(3, 3, 4, 4)), flip=0.0)
    assert torch.equal(still._views(batch)[1], ids)


def real(folder):
    rows = crops(folder, sections(folder), size=(2, 16, 16))
    examples = use("batches", "instances").build().build(rows, None, Context(folder))
    torch.manual_seed(0)
    encoder = use("backbone", "conv_stages", widths=[6], strides=[1])
    return use("backbone", "dense_classifier", classes=2, encoder=encoder).build().build(examples.sample), examples


def test_a_compiled_step_is_the_plain_one(tmp_path):
    model, examples = real(tmp_path)
    made = Affinity(model, axes=(1, 2), rot90=0.5)
    batch = examples.batch(np.arange(4), Noise(0, np.arange(4)))
    torch._dynamo.reset()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    assert compiled(batch).total.item() == pytest.approx(made(batch).total.item(), rel=1e-6)


def test_pictures_show_input_truth_and_prediction(tmp_path):
    model, examples = real(tmp_path)
    rows = Affinity(model, axes=(1, 2)).eval().pictures(examples.batch(np.arange(3), Noise(0, np.arange(3))))
    assert len(rows) == 3 and all(len(row) == 3 for row in rows)
    assert all(part.shape == (1, 2, 16, 16) and part.min() >= 0 and part.max() <= 1 for row in rows for part in row)
    grey, true, _ = rows[0]
    assert grey.min() == 0 and grey.max() == 1
    membrane = torch.from_numpy(examples.ids[0] == 0)[None]
    assert (true[membrane] <= 0.5).all() and true[~membrane].mean() > 0.7  # halves are first voxels


def test_what_cannot_be_is_told():
    logits = torch.zeros(2, 4, 6)
    ids = torch.ones(1, 4, 6, dtype=torch.int64)
    for settings, message in (
        ({"axes": (0,)}, "2 affinities for 1 axes"),
        ({"axes": (0, 2)}, "2 axes have no affinities along"),
        ({"axes": (0, 0)}, "no affinities along"),
        ({"axes": ()}, "no affinities along"),
        ({"rot90": 1.0}, "quarter turns need a square"),
    ):
        with pytest.raises(TilthError, match=message):
            Affinity(Given(logits), **settings)(batch_of(ids))
