"""Pictures with masks: pairs, tiles, what is listed, and the whole way to a network that names pixels."""

import json

import numpy as np
import pytest
from PIL import Image

from tilth.batches.images.segmentation import Segmentation
from tilth.context import Context
from tilth.corpus.arrays import unpacked
from tilth.corpus.detect import detect
from tilth.corpus.ingest import ingest
from tilth.corpus.readers.masks import numbers
from tilth.errors import TilthError
from tilth.recipe import Recipe
from tilth.registry import configure
from tilth.run import execute


def folder(place, count=3, size=(20, 24)):
    """Pictures whose left half is dark, and masks with 1 there, 2 in the last rows, 0 elsewhere."""
    rng = np.random.default_rng(0)
    for name in ("images/a", "masks/a"):
        (place / name).mkdir(parents=True)
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = 1
    mask[-4:] = 2
    for number in range(count):
        picture = (60 + 120 * (mask == 0) + 60 * (mask == 2)).astype(np.uint8)[..., None] + rng.integers(0, 20, (*size, 3))
        Image.fromarray(picture.astype(np.uint8)).save(place / "images/a" / f"{number}.jpg", quality=95)
        paletted = Image.fromarray(mask, "P")
        paletted.putpalette([0, 0, 0, 250, 10, 10, 9, 9, 200])
        paletted.save(place / "masks/a" / f"{number}.png")
    return mask


def test_pairs_become_tiles_with_the_masks_own_numbers(tmp_path):
    mask = folder(tmp_path / "scans")
    found = detect(tmp_path / "scans")
    assert (found.reader, found.kind) == ("masks", "scene") and "masks" in found.why
    corpus = ingest(tmp_path / "scans", tmp_path / "corpus.lance", reader=reader(size=16)).corpus
    rows = corpus.table().to_pylist()
    assert corpus.kind == "scene" and len(rows) == 3 * 4
    assert [row["id"] for row in rows[:4]] == [f"images/a/0.jpg@{y},{x}" for y in (0, 4) for x in (0, 8)]
    for row in rows:
        tile = unpacked(row["mask"])
        assert np.array_equal(tile, mask[row["row"] :, row["column"] :][:16, :16]) and unpacked(row["array"]).shape == (3, 16, 16)
    whole = unpacked(rows[0]["array"])[:, :12, :12]
    assert whole.mean() < 90  # the dark half


def reader(**settings):
    return configure("reader", {"masks": settings})


def test_what_has_no_partner_or_does_not_fit_is_listed(tmp_path):
    folder(tmp_path / "scans", 6)
    masks, images = tmp_path / "scans/masks/a", tmp_path / "scans/images/a"
    (masks / "0.png").unlink()
    (images / "1.jpg").unlink()
    Image.new("RGB", (24, 20)).save(masks / "2.png")
    Image.new("L", (23, 20)).save(masks / "3.png")
    (masks / "4.png").write_bytes(b"\x89PNG broken")
    done = ingest(tmp_path / "scans", tmp_path / "corpus.lance", reader=reader(size=20))
    assert done.read == 2  # the last one, in two tiles
    listed = {line["where"]: line["reason"] for line in map(json.loads, (tmp_path / "skipped.jsonl").read_text().splitlines())}
    assert set(listed) == {"images/a/0.jpg", "masks/a/1.png", "masks/a/2.png", "masks/a/3.png", "masks/a/4.png"}
    assert "no mask" in listed["images/a/0.jpg"] and "no picture" in listed["masks/a/1.png"]
    assert "mode RGB" in listed["masks/a/2.png"] and "20x23 pixels for a picture of 20x24" in listed["masks/a/3.png"]
    whole = ingest(tmp_path / "scans", tmp_path / "whole.lance", reader=reader(size=256)).corpus.table().to_pylist()
    assert [unpacked(row["array"]).shape for row in whole] == [(3, 20, 24)]  # a smaller picture is one smaller tile


def test_single_bits_and_sixteen_are_numbers(tmp_path):
    for mode, value, stored in (("1", 1, 1), ("L", 255, 255), ("I;16", 300, 300)):
        Image.new(mode, (3, 2), value).save(tmp_path / "mask.png")
        assert numbers((tmp_path / "mask.png").read_bytes()).tolist() == [[stored] * 3] * 2


def test_masks_of_0_and_255_are_two_classes_and_larger_numbers_are_refused(tmp_path):
    folder(tmp_path / "scans", 2)
    for number, value in ((0, 255), (1, 255)):
        mask = np.zeros((20, 24), np.uint8)
        mask[:, 12:] = value
        Image.fromarray(mask).save(tmp_path / f"scans/masks/a/{number}.png")
    corpus = ingest(tmp_path / "scans", tmp_path / "corpus.lance", reader=reader(size=20)).corpus
    context = Context(tmp_path / "stage")
    context.folder.mkdir()
    rows = Segmentation(classes=(0, 255), ignore=()).build(corpus, None, context)
    assert sorted(np.unique(rows.masks).tolist()) == [0, 1]
    with pytest.raises(TilthError, match="the mask has"):
        Segmentation(classes=(0, 1), ignore=()).build(corpus, None, context)
    Image.fromarray(np.full((20, 24), 511, np.uint16)).save(tmp_path / "scans/masks/a/0.png")
    wide = ingest(tmp_path / "scans", tmp_path / "wide.lance", reader=reader(size=20)).corpus
    with pytest.raises(TilthError, match="511"):
        Segmentation(classes=(0, 255), ignore=()).build(wide, None, context)


def test_a_recipe_makes_a_network_that_names_pixels_and_says_where_a_reader_is_wrong(tmp_path):
    folder(tmp_path / "scans", 10, (32, 32))
    drawn = {"source": str(tmp_path / "scans"), "reader": {"masks": {"size": 16, "channels": 1}}}
    classes = {"segmentation": {"ignore": []}}
    stages = {
        "model": {
            "pretrain": {
                "data": "drawn",
                "backbone": {"unet": {"classes": 3, "widths": [8, 16]}},
                "batches": classes,
                "objective": "segmentation",
                "training": {"lr": 0.01, "batch_size": 8, "compile": False},
                "budget": {"steps": 60},
            }
        },
        "scores": {
            "evaluate": {
                "model": "model",
                "benchmark": {"segmentation": {"test": "drawn", "names": ["bright", "dark", "rows"], "batches": classes}},
            }
        },
    }
    run = execute(
        Recipe.load({"data": {"drawn": drawn}, "stages": stages}), seed=0, out=tmp_path / "out", store=tmp_path / "store"
    )
    [scores] = [stage["metrics"] for stage in run.record["stages"] if stage["name"] == "scores"]
    assert run.record["data"][0]["rows"] == 40 and scores["iou_dark"] > 0.6
    assert "The class of every pixel" in (tmp_path / "out" / "model" / "exhibits.jsonl").read_text()
    for wrong, message in (({"maske": {}}, "masks"), ({"masks": {"sise": 16}}, "size")):
        with pytest.raises(TilthError) as caught:
            Recipe.load({"data": {"drawn": {**drawn, "reader": wrong}}, "stages": stages})
        assert message in str(caught.value.hint) and "data.drawn.reader" in str(caught.value.where)
