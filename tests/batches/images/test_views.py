"""Views: functions of pictures and keys, drawn as torchvision draws them."""

import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp

from tilth.batches import draws
from tilth.batches.images import augment
from tilth.batches.images.views import PLAIN, Crop, Distortion
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.noise import Noise
from tilth.registry import SettingError, configure

ALL = ["none", "mae", "simclr", "byol", "multi_crop"]


def keys(count, seed=0):
    return torch.from_numpy(Noise(seed, np.arange(count)).keys())


def pictures(count=6, channels=3, height=20, width=20):
    return torch.from_numpy(np.random.default_rng(0).random((count, channels, height, width), dtype=np.float32))


def drawn(count):
    return draws.uniform(keys(count), "boxes", 22)


def torchvision_box(height, width, scale, ratio, generator):
    """RandomResizedCrop.get_params, as torchvision 0.20 writes it."""
    area = height * width
    for _ in range(10):
        target = area * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.randint(0, height - h), generator.randint(0, width - w), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        h, w = height, round(height * max(ratio))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.08, 1)), (24, 40, (0.5, 1)), (40, 12, (0.9, 1)), (12, 50, (0.8, 1))]
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    crop, generator = Crop(scale=scale), random.Random(1)
    boxes = crop.boxes(drawn(6000), height, width).numpy()
    ours = boxes.astype(int)
    theirs = np.array([torchvision_box(height, width, scale, (3 / 4, 4 / 3), generator) for _ in range(6000)])
    assert (ours == boxes).all() and (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2]).max() <= height and (ours[:, 1] + ours[:, 3]).max() <= width
    measures = [lambda b, i=i: b[:, i] for i in range(4)]
    measures += [
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] + b[:, 2],
        lambda b: b[:, 0] * b[:, 3],
    ]
    for measure in measures:
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(90, 10, (38, 0, 13, 10)), (10, 90, (0, 38, 10, 13)), (100, 130, (0, 0, 100, 130))]
)
def test_where_no_box_fits_the_largest_of_a_permitted_ratio_is_taken_from_the_middle(height, width, expected):
    scale = (0.99, 0.9999) if width == 130 else (0.9, 1)
    boxes = {tuple(box) for box in Crop(scale=scale).boxes(drawn(200), height, width).int().tolist()}
    assert expected in boxes and (width == 130 or boxes == {expected})


def test_settings_that_change_nothing_give_the_pictures_back():
    images = pictures()
    torch.testing.assert_close(Crop(scale=(1, 1), flip=0)(images, keys(6)), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(Crop(scale=(1, 1), flip=1, bicubic=True)(images, keys(6)), images.flip(-1), atol=1e-6, rtol=0)
    still = Distortion(jitter=1, brightness=0, contrast=0, saturation=0, hue=0, greyscale=0, blur=0)
    torch.testing.assert_close(still(images, keys(6)), images, atol=1e-6, rtol=0)
    assert use("views", "none").build()(images, keys(6))[0] is images
    assert use("views", "volumes", flip=0, rot90=0, intensity=0).build()(images, keys(6))[0].equal(images)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("height", [20, 72])
def test_views_are_functions_of_picture_and_key_alone(name, height, monkeypatch):
    views, images = use("views", name, **({} if height == 20 else {"size": 66})).build(), pictures(height=height)
    before = images.clone()
    together = views(images, keys(6))
    assert images.equal(before)
    alone = views(images[4:5], keys(6)[4:5])
    monkeypatch.setattr("tilth.batches.images.views._AT_ONCE", 1)
    for whole, single, parts in zip(together, alone, views(images, keys(6)), strict=True):
        torch.testing.assert_close(whole[4:5], single, atol=1e-6, rtol=0)
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)
        assert float(whole.min()) >= 0 and float(whole.max()) <= 1 and not whole.requires_grad
    if name != "none":
        assert all((a - b).abs().max() > 0.05 for a, b in zip(together[0], views(images, keys(6, seed=1))[0]))


def test_each_method_gives_its_views_in_their_sizes_and_no_two_alike():
    images = pictures(4, height=30, width=24)
    sizes = {name: [tuple(v.shape) for v in use("views", name, size=16).build()(images, keys(4))] for name in ALL}
    big, small = (4, 3, 16, 16), (4, 3, 8, 8)
    assert sizes == {"none": [big], "mae": [big], "simclr": [big] * 2, "byol": [big] * 2, "multi_crop": [big] * 2 + [small] * 6}
    views = use("views", "multi_crop", local_crops=2).build()(images, keys(4))
    assert [tuple(v.shape[2:]) for v in views] == [(30, 24)] * 2 + [(15, 12)] * 2
    assert (views[0] - views[1]).abs().mean() > 0.05 and (views[2] - views[3]).abs().mean() > 0.05


def test_the_second_view_draws_from_split_keys():
    images, views = pictures(), use("views", "simclr").build()
    first, second = views(images, keys(6))
    torch.testing.assert_close(views(images, draws.split(keys(6), "view-1"))[0], second)
    assert not first.equal(second)


def test_small_and_large_crops_cover_their_shares():
    large, *_, small = use("views", "multi_crop").build().crops
    for crop, low, high in ((large, 0.4, 1), (small, 0.05, 0.4)):
        share = crop.boxes(drawn(3000), 64, 64)[:, 2:].prod(1) / 64**2
        assert low * 0.9 < float(share.min()) < low * 1.2 and high * 0.9 < float(share.max()) <= min(1, high * 1.1)


def test_orders_of_colour_operations_are_uniform_and_factors_within_their_bounds():
    distortion = Distortion(jitter=0.8, brightness=0.8, contrast=0.4, saturation=1.5, hue=0.2)
    factors, order = distortion.jitter_of(keys(24_000))
    counts = np.unique(order.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 24 and chisquare(counts).pvalue > 1e-3
    same = (factors == torch.tensor([1.0, 1, 1, 0])).all(1)
    assert float(same.float().mean()) == pytest.approx(0.2, abs=0.01)
    low, high = factors[~same].min(0).values, factors[~same].max(0).values
    torch.testing.assert_close(low, torch.tensor([0.2, 0.6, 0, -0.2]), atol=0.01, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.8, 1.4, 2.5, 0.2]), atol=0.01, rtol=0)
    uncorrelated = np.corrcoef(np.concatenate([factors[~same].numpy(), order[~same, :1].numpy()], 1).T)
    assert np.abs(uncorrelated - np.eye(5)).max() < 0.03


def test_probabilities_are_those_of_the_settings():
    flat = torch.tensor([0.9, 0.4, 0.2]).reshape(1, 3, 1, 1).expand(4000, 3, 4, 4)
    grey = Distortion(jitter=0, greyscale=0.2, blur=0)(flat, keys(4000))
    assert float((grey[:, 0] == grey[:, 2]).all((1, 2)).float().mean()) == pytest.approx(0.2, abs=0.02)
    solarised = Distortion(jitter=0, greyscale=0, blur=0, solarise=0.3)(flat, keys(4000))
    assert float((solarised[:, 0] < 0.5).all((1, 2)).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert Distortion(jitter=0, greyscale=0, blur=1)(flat, keys(4000)).equal(flat)
    ramp = torch.linspace(0, 1, 4).expand(4000, 1, 4, 4)
    turned = Crop(scale=(1, 1))(ramp, keys(4000))
    assert float((turned[:, 0, 0, 0] > 0.5).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_byol_blurs_every_first_view_and_solarises_only_the_second():
    first, second = (crop.distortion for crop in use("views", "byol").build().crops)
    assert (first.blur, first.solarise, second.blur, second.solarise) == (1, 0, 0.1, 0.2)
    image = torch.zeros(200, 3, 64, 64)
    image[:, :, 32, 32] = 1
    sharp = [
        float((Distortion(0, blur=d.blur, greyscale=0)(image, keys(200))[:, 0, 32, 32] == 1).float().mean())
        for d in (first, second)
    ]
    assert sharp[0] < 0.2 and sharp[1] == pytest.approx(0.9, abs=0.07)  # widths below 0.25 pixels leave a float32 point as it is


def test_simclr_of_strength_s_jitters_as_its_appendix_says():
    distortion = use("views", "simclr", strength=0.5).build().crops[1].distortion
    assert (distortion.jitter, distortion.greyscale, distortion.blur, distortion.solarise) == (0.8, 0.2, 0.5, 0)
    assert (distortion.brightness, distortion.contrast, distortion.saturation, distortion.hue) == pytest.approx(
        (0.4, 0.4, 0.4, 0.1)
    )


def test_pictures_of_other_than_three_channels_are_cropped_and_lit_but_keep_their_channels_apart():
    for channels in (1, 5):
        views = use("views", "byol", size=12).build()(pictures(channels=channels), keys(6))
        assert [tuple(view.shape) for view in views] == [(6, channels, 12, 12)] * 2
    flat = torch.tensor([0.1, 0.3, 0.5, 0.2, 0.4]).reshape(1, 5, 1, 1).expand(50, 5, 8, 8)
    assert (Distortion(greyscale=1)(flat, keys(50))[:, 2] >= Distortion(greyscale=1)(flat, keys(50))[:, 0]).all()


def test_volumes_are_flipped_turned_and_shifted_with_their_probabilities():
    count = 4000
    volume = torch.arange(12.0).reshape(1, 1, 2, 2, 3).expand(count, -1, -1, -1, -1)
    flipped = use("views", "volumes", flip=0.3, rot90=0, intensity=0).build()(volume, keys(count))[0]
    corner = flipped[:, 0, 0, 0, 0].int()  # 6, 3 and 2 for the axes that were flipped
    for seen in (corner >= 6, corner % 6 >= 3, corner % 3 == 2):
        assert float(seen.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert flipped.equal(augment.flip(volume, torch.stack([corner >= 6, corner % 6 >= 3, corner % 3 == 2], 1)))
    turned = use("views", "volumes", flip=0, rot90=0.6, intensity=0).build()(volume, keys(count))[0]
    found = [float((turned == volume.rot90(k, (2, 3))).all((1, 2, 3, 4)).float().mean()) for k in range(4)]
    assert found == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.03)
    shifted = use("views", "volumes", flip=0, rot90=0, shift=0.1, intensity=0.5).build()(volume, keys(count))[0] - volume
    amounts = shifted[:, 0, 0, 0, 0]
    assert float((amounts == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert 0.09 < float(amounts.max()) <= 0.1 and -0.1 <= float(amounts.min()) < -0.09


def test_what_cannot_be_is_said():
    for scale in ([0.5, 0.2], [0, 1]):
        with pytest.raises(TilthError, match="scale"):
            use("views", "mae", scale=tuple(scale)).build()
    with pytest.raises(TilthError, match="volumes"):
        use("views", "simclr").build()(torch.rand(2, 1, 4, 4, 4), keys(2))
    with pytest.raises(SettingError):
        configure("views", {"byol": {"first": {"blurr": 1}}})
    assert configure("views", {"byol": {"first": {"blur": 0.5}}}).build().crops[0].distortion.blur == 0.5
    assert Crop().distortion is PLAIN
