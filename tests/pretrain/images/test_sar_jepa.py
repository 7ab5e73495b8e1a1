"""SAR-JEPA: windows of each picture by itself, what is hidden in them, what may know of what, and the targets' scale."""

import pytest
import torch

from tilth.backbones.patches import Patches
from tilth.batches.patches.gradients import ratio_gradient, sobel_magnitude
from tilth.batches.patches.patchify import normalised, patchify
from tilth.batches.patches.windows import windows
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.sar_jepa import SARJEPA

SAMPLE = Sample(1, (40, 40), (0.4,), (0.3,))
NONE = use("views", "none")


def objective(sample=SAMPLE, class_token=True, **settings):
    torch.manual_seed(0)
    model = Patches(width=24, depth=2, heads=2, patch=4, position="relative", class_token=class_token).build(sample)
    given = {"side": 5, "radii": (2, 4), "predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2, "views": NONE}
    made = SARJEPA(model, **{**given, **settings})
    for module in made.modules():
        if hasattr(module, "table"):
            torch.nn.init.normal_(module.table, std=0.5)
    return made


def batch(count=4, sample=SAMPLE):
    torch.manual_seed(1)
    return Batch(pixel_values=torch.rand(count, sample.channels, *sample.size), keys=torch.arange(count) * 3 + 1)


def test_windows_begin_at_different_places_and_every_picture_has_its_own():
    found = windows(torch.arange(400), (14, 14), 7, 4)
    assert found.shape == (400, 4, 49)
    tops, lefts = found[..., 0] // 14, found[..., 0] % 14
    for begins in (tops, lefts):
        assert all(len(row.unique()) == 4 for row in begins) and begins.min() == 0 and begins.max() == 7
        counts = torch.bincount(begins.flatten())
        assert counts.min() > 130 and counts.max() < 270  # of 200 expected
    rows = torch.arange(7)[:, None] * 14 + torch.arange(7)
    assert torch.equal(found, (tops * 14 + lefts)[..., None] + rows.flatten())
    assert len(found[:, 0, 0].unique()) > 40
    deep = windows(torch.arange(3), (4, 5, 6), 2, 2)
    assert deep.shape == (3, 2, 8) and torch.equal(
        deep - deep[..., :1], torch.tensor([0, 1, 6, 7, 30, 31, 36, 37]).expand(3, 2, 8)
    )


def test_counts_of_the_paper():
    made = objective(Sample(1, (224, 224)), side=7)
    places, mask = made.drawn(torch.arange(6), (14, 14))
    assert places.shape == (6, 4, 49) and mask.hidden.shape == (24, 39) and mask.kept.shape == (24, 10)
    per_window = mask.where().unflatten(0, (6, 4))
    assert (per_window.sum(2) == 39).all() and not any(torch.equal(per_window[0, 0], per_window[0, n]) for n in (1, 2, 3))
    assert len(torch.stack([row.nonzero().flatten() for row in mask.where()]).unique(dim=0)) == 24
    targets = SARJEPA(Patches(width=24, depth=1, heads=2, position="relative").build(Sample(1, (224, 224)))).targets(
        torch.rand(1, 1, 224, 224)
    )
    assert targets.shape == (1, 196, 1024)


@pytest.mark.parametrize("class_token", [True, False])
def test_the_mask_token_stands_at_hidden_places_alone(class_token):
    made, given = objective(class_token=class_token), batch()
    places, mask = made.drawn(given["keys"], (10, 10))
    seen = []
    made.model.encode, encode = lambda tokens, **more: seen.append(tokens) or encode(tokens, **more), made.model.encode
    made.predicted(given.pixel_values, places, mask)
    where = mask.where()
    assert torch.equal((seen[0] == made.token).all(-1), where) and where.sum(1).eq(20).all()
    embedding = made.model.embedding(given.pixel_values)
    whole = embedding(embedding.standardised(given.pixel_values))
    tokens = torch.stack([whole[i // 4][places[i // 4, i % 4]] for i in range(16)])
    torch.testing.assert_close(seen[0][~where], tokens[~where])


def test_nothing_outside_a_window_or_hidden_in_it_reaches_its_predictions_but_targets_see_beyond():
    made, given = objective(windows=1), batch(1)
    pixels = given.pixel_values.clone().requires_grad_()
    places, mask = made.drawn(given["keys"], (10, 10))
    predicted = made.predicted(pixels, places, mask)
    reached = patchify(torch.autograd.grad(predicted.square().sum(), pixels)[0], (4, 4)).abs().sum(-1)[0] > 0
    assert set(reached.nonzero().flatten().tolist()) == set(places[0, 0, mask.kept[0]].tolist())
    inside = torch.zeros(100, dtype=torch.bool).index_fill(0, places[0, 0], True).reshape(10, 10)
    inside = inside.repeat_interleave(4, 0).repeat_interleave(4, 1)
    other = torch.where(inside, given.pixel_values, 1 - given.pixel_values)
    assert torch.equal(made.predicted(other, places, mask), made.predicted(given.pixel_values, places, mask))
    moved = (made.targets(other) != made.targets(given.pixel_values)).any(-1)[0, places[0, 0]].reshape(5, 5)
    assert moved.any() and not moved[2, 2]  # a patch of 4 pixels in the middle is 8 away from the border, radii are 2 and 4


@pytest.mark.parametrize("class_token", [True, False])
def test_the_same_content_elsewhere_gives_the_same_predictions(class_token):
    made = objective(class_token=class_token, windows=1)
    content = torch.rand(1, 1, 20, 20)
    _, mask = made.drawn(torch.arange(1), (10, 10))
    found = []
    for top, left in ((0, 0), (3, 5)):
        pixels = torch.rand(1, 1, 40, 40)
        pixels[..., 4 * top : 4 * top + 20, 4 * left : 4 * left + 20] = content
        rows = (torch.arange(5)[:, None] + top) * 10 + torch.arange(5) + left
        found.append(made.predicted(pixels, rows.flatten()[None, None], mask))
    assert torch.equal(*found)


def test_only_hidden_patches_count_and_a_perfect_prediction_has_no_loss():
    made, given = objective(), batch()
    places, mask = made.drawn(given["keys"], (10, 10))
    maps = torch.cat([ratio_gradient(given.pixel_values, radius) for radius in (2, 4)], 1)
    wanted = torch.stack([patchify(maps, (4, 4))[i // 4][places[i // 4, i % 4]] for i in range(16)])
    kept = (~mask.where())[:, :, None]
    made.predicted = lambda *_: torch.where(kept, 1e6, wanted)
    assert made(given).total.item() == 0
    made.predicted = lambda *_: wanted + torch.where(kept, 0, 0.5)
    assert made(given).total.item() == pytest.approx(0.25, rel=1e-5)


def test_targets_without_gradient_in_their_own_scale_or_the_baselines():
    pixels = torch.rand(2, 1, 40, 40, requires_grad=True)
    standard = (pixels.detach() - 0.4) / 0.3
    assert not objective().targets(pixels).requires_grad
    torch.testing.assert_close(objective(target="pixels").targets(pixels), normalised(patchify(standard, (4, 4))))
    torch.testing.assert_close(objective(target="sobel").targets(pixels), patchify(sobel_magnitude(standard, 3), (4, 4)))
    for target in ("sobel", "pixels", "ratio_gradient"):
        made = objective(Sample(2, (40, 40)), target=target)
        two = Batch(pixel_values=torch.rand(2, 2, 40, 40), keys=torch.arange(2))
        assert torch.isfinite(made(two).total)


@pytest.mark.parametrize("class_token", [True, False])
def test_every_weight_learns_and_batches_do_not_depend_on_their_company(class_token):
    made, whole = objective(class_token=class_token), batch()
    loss = made(whole)
    loss.total.backward()
    assert {name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()} == set() and loss.count == 4
    halves = [Batch(pixel_values=whole.pixel_values[i : i + 2], keys=whole["keys"][i : i + 2]) for i in (0, 2)]
    assert loss.total.item() == pytest.approx(sum(made(half).total.item() for half in halves) / 2, rel=1e-5)


def test_what_cannot_be_is_told():
    plain = Patches(width=24, depth=1, heads=2, patch=4).build(SAMPLE)
    with pytest.raises(TilthError, match="where they lie"):
        SARJEPA(plain)
    with pytest.raises(TilthError, match="do not begin at different places"):
        objective(side=8)(batch())
    with pytest.raises(TilthError, match="has no place"):
        objective(radii=(40,))(batch())
