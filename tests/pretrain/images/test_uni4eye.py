"""Uni4Eye: which weights meet which inputs, what both branches rebuild, and MAE as what is left without the second."""

import pytest
import torch
from torch.nn import functional as F

from tilth.backbones.patches import Patches
from tilth.backbones.positions import coordinates, sincos
from tilth.batches.patches.entropy import by_entropy, patch_entropy
from tilth.batches.patches.gradients import sobel_magnitude
from tilth.batches.patches.masks import random
from tilth.batches.patches.patchify import patchify, unpatchify
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.mae import MAE
from tilth.pretrain.images.uni4eye import Uni4Eye

PICTURE, VOLUME = Sample(3, (16, 16), (0.4,) * 3, (0.3,) * 3), Sample(1, (16, 8, 8), (0.4,), (0.3,))
NONE = use("views", "none")
STILL = use("views", "volumes", flip=0, rot90=0, intensity=0)


def encoder(*samples, width=24, patch=4):
    torch.manual_seed(0)
    return Patches(width=width, depth=2, heads=2, patch=patch, patch_3d=patch).build(list(samples))


def objective(*samples, **settings):
    model = encoder(*(samples or (PICTURE, VOLUME)))
    given = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2, "views": NONE, "volume_views": STILL, **settings}
    return Uni4Eye(model, **given)


def batch(sample, count=4, start=1):
    torch.manual_seed(start)
    return Batch(pixel_values=torch.rand(count, sample.channels, *sample.size), keys=torch.arange(count) * 3 + start)


def learnt(made):
    return {name for name, parameter in made.named_parameters() if parameter.grad is not None and parameter.grad.any()}


def test_the_axes_of_an_input_choose_its_convolution():
    model = encoder(PICTURE, VOLUME)
    for sample, convolution in ((PICTURE, F.conv2d), (VOLUME, F.conv3d)):
        pixels = batch(sample).pixel_values
        embedding = model.embedding(pixels)
        layer = embedding.projections[0]
        kernel = layer.weight.unflatten(1, (sample.channels, *[4] * len(sample.size)))
        maps = convolution(embedding.standardised(pixels), kernel, layer.bias, stride=4)
        placed = maps.flatten(2).mT + sincos(coordinates(embedding.grid), 24)
        torch.testing.assert_close(embedding(embedding.standardised(pixels)), placed, atol=1e-5, rtol=0)


def test_a_step_on_pictures_leaves_what_is_of_volumes_alone_and_both_teach_the_blocks():
    names = {}
    for kind, sample in (("2d", PICTURE), ("3d", VOLUME)):
        made = objective()
        made(batch(sample)).total.backward()
        names[kind] = learnt(made)
        other = {"2d": "3d", "3d": "2d"}[kind]
        assert not any(other in name for name in names[kind])
        assert {n for n, _ in made.named_parameters() if kind in n} <= names[kind]
        assert all(p.grad is None for n, p in made.named_parameters() if other in n)
    shared = {name for name, _ in objective().named_parameters() if "2d" not in name and "3d" not in name}
    assert any("model.blocks" in name for name in shared) and shared <= names["2d"] & names["3d"]


def test_a_slice_repeated_through_the_depth_of_an_inflated_kernel_gives_the_tokens_of_the_slice():
    flat, deep = Sample(1, (16, 24), (0.4,), (0.3,)), Sample(1, (16, 24, 4), (0.4,), (0.3,))
    model = encoder(flat, deep)
    picture = torch.rand(2, 1, 16, 24)
    volume = picture[..., None].expand(-1, -1, -1, -1, 4).contiguous()
    planar, solid = model.embedding(picture), model.embedding(volume)
    with torch.no_grad():
        kernel = planar.projections[0].weight.reshape(24, 1, 4, 4)
        solid.projections[0].weight.copy_((kernel[..., None] / 4).expand(-1, -1, -1, -1, 4).reshape(24, -1))
        solid.projections[0].bias.copy_(planar.projections[0].bias)
    planar.position = solid.position = "none"
    tokens = [part(part.standardised(values)) for part, values in ((planar, picture), (solid, volume))]
    torch.testing.assert_close(*tokens, atol=1e-5, rtol=0)


def test_counts_of_the_paper_and_inputs_of_other_shapes():
    model = encoder(Sample(3, (224, 224)), Sample(1, (224, 224, 112)), width=12, patch=16)
    assert model.embedding(torch.empty(1, 3, 0, 0)).grid == (14, 14) and model.embedding(torch.empty(1, 1, 0, 0, 0)).grid == (
        14,
        14,
        7,
    )
    assert model(torch.rand(1, 3, 224, 224)).tokens.shape[1] == 196
    assert model(torch.rand(1, 1, 224, 224, 112)).tokens.shape[1] == 1372
    assert model(torch.rand(1, 3, 32, 64)).tokens.shape[1] == 8 and model(torch.rand(1, 1, 32, 48, 16)).tokens.shape[1] == 6
    volume = torch.rand(1, 1, 32, 48, 16)
    assert torch.equal(unpatchify(patchify(volume, (16, 16, 16)), (2, 3, 1), (16, 16, 16)), volume)


@pytest.mark.parametrize("sample", [PICTURE, VOLUME])
@pytest.mark.parametrize("normalise", [True, False])
def test_without_its_second_branch_it_is_mae(sample, normalise):
    made = objective(sample, gradient_weight=0, normalise=normalise)
    plain = MAE(
        made.model, normalise=normalise, decoder_width=24, decoder_depth=1, decoder_heads=2,
        views=NONE if sample is PICTURE else STILL,
    )  # fmt: skip
    plain.decoder.load_state_dict(
        made.image.decoder.state_dict()
        | {f"head.{name}": value for name, value in made.image.heads[f"{len(sample.size)}d"].state_dict().items()}
    )
    given = batch(sample)
    torch.testing.assert_close(made(given).total, plain(given).total)
    assert not any(name.startswith("gradient") for name, _ in made.named_parameters())


@pytest.mark.parametrize("sample", [PICTURE, VOLUME])
def test_each_branch_rebuilds_its_own_target_at_the_patches_that_both_hide(sample):
    made, given = objective(normalise=True), batch(sample)
    pixels, side = given.pixel_values, 4 ** len(sample.size)
    masks = []
    for branch in (made.image, made.gradient):
        branch.register_forward_pre_hook(lambda module, inputs: masks.append(inputs[2]))
    made(given)
    assert len(masks) == 2 and torch.equal(masks[0].hidden, masks[1].hidden) and torch.equal(masks[0].kept, masks[1].kept)
    assert masks[0].hidden.shape[1] == int(0.75 * masks[0].tokens)
    standard = (pixels - 0.4) / 0.3
    luma = (standard * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True) if sample is PICTURE else standard
    edges = patchify(sobel_magnitude(luma), [4] * len(sample.size))
    where = masks[0].hidden[:, :, None]
    patches = patchify(standard, [4] * len(sample.size)).gather(1, where.expand(-1, -1, side * sample.channels))
    unit = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    made.image.forward = lambda *_: unit  # a perfect prediction of each
    made.gradient.forward = lambda *_: edges.gather(1, where.expand(-1, -1, side)) + 0.5
    image, gradient = made.losses(given)
    assert image.item() < 1e-9 and gradient.item() == pytest.approx(0.25, rel=1e-5)
    assert made(given).total.item() == pytest.approx(0.25, rel=1e-5)


def test_targets_that_are_seen_do_not_count():
    made, given = objective(PICTURE), batch(PICTURE)
    mask = made.mask(given["keys"], given.pixel_values)
    for branch, out in ((made.image, 48), (made.gradient, 16)):
        branch.forward = lambda *_, out=out: torch.zeros(4, mask.hidden.shape[1], out)
    before = made.losses(given)
    changed = patchify(given.pixel_values, (4, 4)).clone()
    changed = changed.scatter(1, mask.kept[:, :, None].expand(-1, -1, 48), 0.9)
    after = made.losses(Batch(pixel_values=unpatchify(changed, (4, 4), (4, 4)), keys=given["keys"]))
    torch.testing.assert_close(before[0], after[0])  # G may differ by what its filter takes from across the border
    assert after[1] != before[1]


def test_positions_are_there_frozen_and_different_for_every_token():
    made = objective()
    tables = [embedding.positions(embedding.grid)[0] for embedding in made.model.embeddings.values()]
    tables += [sincos(coordinates(embedding.grid), made.image.decoder.width) for embedding in made.model.embeddings.values()]
    for table in tables:
        assert not table.requires_grad and table.abs().sum(1).all() and len(table.unique(dim=0)) == len(table)
    assert not any("position" in name for name, _ in made.named_parameters())


def test_entropy_is_that_of_the_histogram():
    patches = torch.zeros(1, 4, 64)
    patches[0, 1] = torch.arange(64) % 2  # two levels
    patches[0, 2] = torch.arange(64) / 63  # sixty-four
    patches[0, 3] = 1.0
    torch.testing.assert_close(patch_entropy(patches), torch.tensor([[0, 2, 64, 1]]).float().clamp(min=1).log())


def test_flat_patches_are_kept_first_and_equal_ones_are_hidden_at_random():
    keys = torch.arange(500)
    picture = torch.rand(1, 1, 32, 32)
    picture[:, :, :8] = 0.3  # the first row of four patches is flat
    entropy = patch_entropy(patchify(picture, (8, 8))).expand(500, -1)
    assert not entropy[:, :4].any()
    assert torch.equal(by_entropy(keys, entropy, 12).kept, torch.arange(4).expand(500, -1))
    mild = torch.arange(1.0, 17).expand(500, -1)
    often = by_entropy(keys, mild, 8).where().float().mean(0)
    assert often[12:].mean() > often[:4].mean() + 0.3
    for level in (0.0, 2.0):
        same = by_entropy(keys, torch.full((500, 16), level), 8)
        assert torch.equal(same.hidden, random(keys, 16, 8).hidden)


def test_entropy_masking_trains_on_both_kinds():
    made = objective(masking="entropy")
    for sample in (PICTURE, VOLUME):
        assert torch.isfinite(made(batch(sample)).total)
    constant = Batch(pixel_values=torch.full((2, 3, 16, 16), 0.4), keys=torch.arange(2))
    assert torch.isfinite(made(constant).total)


def test_a_batch_of_both_is_the_mean_of_its_kinds_and_halves_make_the_whole():
    made = objective()
    pictures, volumes = batch(PICTURE, 8), batch(VOLUME, 4)
    whole = made(Batch(pictures=pictures, volumes=volumes))
    alone = [made(part).total for part in (pictures, volumes)]
    torch.testing.assert_close(whole.total, (alone[0] + alone[1]) / 2)
    assert whole.count == 4 and set(whole.parts) == {"image_2d", "gradient_2d", "image_3d", "gradient_3d"}
    halves = [
        made(Batch(**{
            kind: Batch(**{name: values[len(values) * i // 2 : len(values) * (i + 1) // 2] for name, values in part.items()})
            for kind, part in (("pictures", pictures), ("volumes", volumes))
        }))
        for i in (0, 1)
    ]  # fmt: skip
    assert whole.total.item() == pytest.approx(sum(half.total.item() for half in halves) / 2, rel=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_pictures_for_the_report_are_the_input_where_it_is_seen(normalise):
    made, given = objective(normalise=normalise).eval(), batch(PICTURE)
    for asked in (given, Batch(pictures=given, volumes=batch(VOLUME))):
        rows = made.pictures(asked)
        mask = made.mask(given["keys"], given.pixel_values)
        assert len(rows) == 4 and all(part.shape == (3, 16, 16) for row in rows for part in row)
        whole, seen, rebuilt = (patchify(torch.stack(part), (4, 4)) for part in zip(*rows, strict=True))
        place = mask.kept[:, :, None].expand(-1, -1, 48)
        torch.testing.assert_close(rebuilt.gather(1, place), whole.gather(1, place))
        torch.testing.assert_close(seen.gather(1, place), whole.gather(1, place))
        torch.testing.assert_close(torch.stack([row[0] for row in rows]), given.pixel_values)


def test_groups_of_channels_are_told():
    model = Patches(width=24, depth=1, heads=2, patch=4, groups=[[0], [1, 2]]).build(PICTURE)
    with pytest.raises(TilthError, match="embedded together"):
        Uni4Eye(model)
