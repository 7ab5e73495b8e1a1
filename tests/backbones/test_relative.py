"""Relative positions: iRPE's buckets and scores as they are defined, plain attention where the table is 0, the same wherever it lies."""

import math

import pytest
import torch

from tilth.backbones.blocks import Attention
from tilth.backbones.patches import PatchEncoder, Patches
from tilth.backbones.positions import coordinates
from tilth.backbones.relative import RelativeAttention, bucket_count, buckets, piecewise
from tilth.contracts import Sample
from tilth.errors import TilthError
from tilth.training.optimisers import AdamW


def encoder(sample=None, spread=1.0, **settings):
    """Two blocks, tables filled."""
    torch.manual_seed(0)
    given = {"width": 24, "depth": 2, "heads": 2, "patch": 4, "position": "relative", **settings}
    model = Patches(**given).build(sample or Sample(1, (28, 28))).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.mixer.table, std=spread)
    return model


def g(d, a=1.9, b=3.8, c=15.2):
    """The definition, for one number."""
    if abs(d) <= a:
        return round(d)
    return int(math.copysign(min(b, round(a + math.log(abs(d) / a) / math.log(c / a) * (b - a))), d))


def test_indices_are_those_of_the_definition():
    offsets = torch.arange(-40.0, 41)
    assert piecewise(offsets).tolist() == [g(d) for d in offsets.tolist()]
    assert piecewise(torch.arange(8.0)).tolist() == [0, 1, 2, 2, 3, 3, 3, 3] and piecewise(torch.tensor([900.0])).item() == 3


def test_every_pair_of_indices_has_a_bucket_and_pairs_with_the_class_token_the_last():
    places = coordinates((7, 7))[None]
    found = buckets(places, class_token=True)
    assert bucket_count(2) == 50 and bucket_count(3) == 344 and found.shape == (1, 1, 50, 50)
    assert (found[..., 0, :] == 49).all() and (found[..., :, 0] == 49).all()
    inner = found[0, 0, 1:, 1:]
    for i, j in ((0, 0), (0, 48), (48, 0), (10, 37), (6, 0)):
        (y, x), (v, u) = divmod(i, 7), divmod(j, 7)
        assert inner[i, j] == 7 * (g(y - v) + 3) + g(x - u) + 3
    assert inner.min() == 0 and inner.max() == 48 and len(inner.unique()) == 49


def test_scores_are_those_of_the_equation_and_a_table_of_0_is_plain_attention():
    torch.manual_seed(0)
    ours, plain = RelativeAttention(24, 3, 2), Attention(24, 3)
    ours.load_state_dict(plain.state_dict() | {"table": ours.table.detach()})
    x, given = torch.randn(2, 12, 24), buckets(coordinates((3, 4))[None])
    assert not ours.table.any()
    torch.testing.assert_close(ours(x, given), plain(x))
    torch.nn.init.normal_(ours.table)
    q, k, v = ours.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    vectors = ours.table[given[0, 0]]  # query, key, d
    scores = (torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, vectors)) / math.sqrt(8)
    torch.testing.assert_close(ours(x, given), ours.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
    assert not torch.allclose(ours(x, given), plain(x), atol=1e-2)
    ours(x, given).square().sum().backward()
    assert ours.table.grad.any(1).nonzero().flatten().tolist() == given.unique().tolist()


@pytest.mark.parametrize("class_token", [True, False])
def test_a_window_means_the_same_wherever_it_lies(class_token):
    model = encoder(class_token=class_token)
    tokens = torch.randn(2, 9, 24)
    found = [model.encode(tokens, places=coordinates((3, 3))[None] + torch.tensor([[dy, dx]])) for dy, dx in ((0, 0), (4, 1))]
    assert torch.equal(found[0].tokens, found[1].tokens) and torch.equal(found[0].pooled, found[1].pooled)
    turned = model.encode(tokens, places=coordinates((3, 3)).flip(1)[None])
    assert not torch.allclose(found[0].tokens, turned.tokens, atol=1e-3)


def test_each_example_may_keep_other_patches():
    model = encoder()
    pixels = torch.rand(2, 1, 28, 28)
    whole = torch.arange(49).expand(2, -1)
    torch.testing.assert_close(model(pixels, kept=whole).tokens, model(pixels).tokens)
    kept = torch.stack([torch.arange(0, 49, 5), torch.arange(4, 49, 5)[:9].repeat(2)[:10].sort().values])
    together = model(pixels, kept=kept).tokens
    for number in range(2):
        alone = model(pixels[number : number + 1], kept=kept[number : number + 1]).tokens
        torch.testing.assert_close(together[number : number + 1], alone)


def test_any_grid_and_any_number_of_axes():
    assert encoder()(torch.rand(1, 1, 56, 40)).tokens.shape == (1, 140, 24)
    assert encoder(Sample(1, (8, 8, 12)))(torch.rand(1, 1, 8, 8, 12)).tokens.shape == (1, 12, 24)


def test_it_is_saved_with_the_encoder_and_not_decayed(tmp_path):
    model, pixels = encoder(class_token=True), torch.rand(2, 1, 28, 28)
    model.save_pretrained(tmp_path)
    assert torch.equal(PatchEncoder.from_pretrained(tmp_path).eval()(pixels).tokens, model(pixels).tokens)
    fresh = Patches(width=24, depth=2, heads=2, patch=4, position="relative").build(Sample(1, (28, 28)))
    assert not any(block.mixer.table.any() for block in fresh.blocks)
    groups = AdamW(model, 1e-3).param_groups
    spared = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert all(id(block.mixer.table) in spared for block in model.blocks)


def test_what_cannot_be_is_told():
    for settings in ({"mixer": "mamba"}, {"groups": [[0], [1, 2]]}):
        with pytest.raises(TilthError, match="go with attention"):
            Patches(position="relative", **settings)
    with pytest.raises(TilthError, match="one kind of input"):
        Patches(position="relative").build([Sample(1, (32, 32)), Sample(1, (32, 32, 32))])
    with pytest.raises(TilthError, match="where the tokens lie"):
        encoder().encode(torch.randn(1, 9, 24))
