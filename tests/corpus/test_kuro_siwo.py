"""Kuro Siwo's folder becomes rows: which date is which, dry or unlabelled, what is listed, and the way to a network of floods."""

import json

import numpy as np
import pytest
import torch
import yaml

from tests.test_cli import tilth
from tilth.batches.images.segmentation import Segmentation
from tilth.context import Context
from tilth.contracts import Noise
from tilth.corpus import Corpus
from tilth.corpus.arrays import unpacked
from tilth.corpus.detect import detect
from tilth.corpus.ingest import ingest
from tilth.corpus.readers.kuro_siwo import KuroSiwo
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError
from tilth.evaluate.segmentation import confusion
from tilth.pretrain.images.dense_losses import LOSSES
from tilth.registry import use

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

DAYS = {"SL2": "20170410", "SL1": "20170422", "MS1": "20170504"}
BANDS = ["pre2 VV", "pre2 VH", "pre1 VV", "pre1 VH", "post VV", "post VH"]
CONSTANTS = {"mean": [0.0953, 0.0264], "std": [0.0427, 0.0215]}
CATALOGUE = """
DATA_PATH: &DATA_PATH your/path
CAT_PATH: &CAT_PATH !join [*DATA_PATH, 'catalogue.gpkg']
CL_ZONES:
  - {cl_zone: 1, cl_name: Tropical}
  - {cl_zone: 3, cl_name: Temperate}
Floods:
  - {act_id: 421, act_region: A, ref_date: 20201005T180000, aois: [{aoi_id: '05', aoi_name: B, cl_zone: 3}]}
  - {act_id: 470, act_region: C, ref_date: 20201005T180000, aois: [{aoi_id: '01', aoi_name: D, cl_zone: 1}]}
"""


def tiff(path, array, nodata=None):
    array = array[None] if array.ndim == 2 else array
    bands, height, width = array.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": array.dtype, "nodata": nodata}
    with rasterio.open(path, "w", **about) as file:
        file.write(array)


def cell(root, event, area, name, size=(8, 8), labels="water", seed=0):
    """The files of one cell as they are published; `labels` 'water', 'dry' (no file of a mask) or None (of no area)."""
    rng = np.random.default_rng(seed)
    folder = root / str(event) / (area or f"00/{name[:2]}") / name
    where = f"{event}_{area or 'NA'}"
    invalid = np.zeros(size, bool)
    invalid[0] = True
    for number, (scene, day) in enumerate(DAYS.items()):
        for channel, level in (("IVV", 0.1), ("IVH", 0.02)):
            values = (level + number / 1000 + rng.uniform(0, 1e-4, size)).astype(np.float32)
            values[invalid] = 0
            if (scene, channel) == ("MS1", "IVV"):
                values[-1, 0] = np.nan
            tiff(folder / f"{scene}_{channel}_{where}_{day}.tif", values, 0)
    tiff(folder / f"MK0_MNA_{where}_{DAYS['MS1']}.tif", (~invalid).astype(np.uint8), 0)
    if area:
        dem = np.full(size, 50, np.float32)
        dem[-1, -1] = 3e38
        tiff(folder / f"MK0_DEM_{where}_{DAYS['MS1']}.tif", dem, 3e38)
        tiff(folder / f"MK0_SLOPE_{where}_{DAYS['MS1']}.tif", np.ones(size, np.float32))
    if labels == "water":
        tiff(folder / f"MK0_MLU_{where}_{DAYS['MS1']}.tif", drawn(size), 3)
    (folder / "info.json").write_text(json.dumps({"actid": event, "aoiid": area and int(area)}))
    return folder


def drawn(size=(8, 8)):
    """A mask: nothing seen in the first row, permanent water in the second, a flood in the third."""
    mask = np.zeros(size, np.uint8)
    mask[:3] = np.array([3, 1, 2])[:, None]
    return mask


def published(root):
    """A cell with water, a dry one and an unlabelled one, and what lies beside them."""
    cell(root, 421, "05", "ab12")
    cell(root, 421, "05", "cd34", labels="dry", seed=1)
    unlabelled = cell(root, 421, None, "ef56", labels=None, seed=2)
    (unlabelled / "MS1_IVV_421_NA_20170504.tif.aux.xml").write_text("<PAMDataset/>")
    (root / "421/catalogue.gkpg").write_bytes(b"x")
    (root / "catalogue.yaml").write_text(CATALOGUE)
    return root


def read(source, out, **settings):
    done = ingest(source, out / "corpus.lance", reader=use("reader", "kuro_siwo", **settings))
    return done, {row["id"]: row for row in done.corpus.table().to_pylist()}


def examples(corpus, folder, **settings):
    folder.mkdir()
    rows = Segmentation(**{"dates": 3, "clamp": 0.15, **CONSTANTS, **settings}).build(corpus, None, Context(folder))
    return rows, rows.batch(np.arange(len(rows)), Noise(0, np.arange(len(rows))))


def test_a_cell_is_a_row_with_its_dates_in_order(tmp_path):
    published(tmp_path / "in")
    found = detect(tmp_path / "in")
    assert (found.reader, found.kind) == ("kuro_siwo", "scene") and "Kuro Siwo" in found.why
    done, rows = read(tmp_path / "in", tmp_path)
    assert not done.skipped and done.corpus.kind == "scene" and set(rows) == {"ab12", "cd34", "ef56"}
    water, dry, unlabelled = rows["ab12"], rows["cd34"], rows["ef56"]
    array = unpacked(water["array"])
    assert array.shape == (6, 8, 8) and array.dtype == np.float32 and water["bands"] == BANDS
    # Each file has its own level: SL2 VV, SL2 VH, SL1 VV, SL1 VH, MS1 VV, MS1 VH. Zeros are kept, for they are what is stored.
    levels = np.nanmean(array[:, 1:], (1, 2))
    assert np.abs(levels - [0.1, 0.02, 0.101, 0.021, 0.102, 0.022]).max() < 1e-4 and not array[:, 0].any()
    assert np.argwhere(np.isnan(array)).tolist() == [[4, 7, 0]]
    assert water["dates"] == ["2017-04-10", "2017-04-22", "2017-05-04"]
    assert np.array_equal(unpacked(water["mask"]), drawn()) and unpacked(water["mask"]).dtype == np.uint8
    assert unpacked(water["valid"])[:, 0].tolist() == [0] + [1] * 7
    dem = unpacked(water["dem"])
    assert np.isnan(dem[-1, -1]) and np.isnan(dem).sum() == 1 and dem[0, 0] == 50
    assert (water["event"], water["area"], water["climate"], water["source"]) == (421, "05", "Temperate", "421/05/ab12")
    assert dry["mask"] is None and dry["labelled"] and water["labelled"]
    assert not unlabelled["labelled"] and set(unpacked(unlabelled["mask"]).flat) == {3} and unlabelled["dem"] is None
    assert (unlabelled["area"], unlabelled["climate"], unlabelled["source"]) == (None, None, "421/00/ef/ef56")


def test_one_kind_of_cells_is_read_where_it_is_wanted(tmp_path):
    published(tmp_path / "in")
    assert set(read(tmp_path / "in", tmp_path / "a", labelled=True)[1]) == {"ab12", "cd34"}
    done, rows = read(tmp_path / "in", tmp_path / "b", labelled=False)
    assert set(rows) == {"ef56"} and not done.skipped
    with pytest.raises(TilthError, match="all 2 records are labelled") as caught:
        read(tmp_path / "in/421/05", tmp_path / "c", labelled=False)
    assert "labelled" in str(caught.value.hint)
    assert set(read(tmp_path / "in/421/05/ab12", tmp_path / "d")[1]) == {"ab12"}  # a folder that is itself a cell


def test_a_row_that_is_broken_is_listed_and_never_a_dry_one(tmp_path):
    root = tmp_path / "in"
    end = "421_05_20170504.tif"
    cell(root, 421, "05", "whole")
    (cell(root, 421, "05", "no_date") / "SL2_IVV_421_05_20170410.tif").unlink()
    mask = cell(root, 421, "05", "cut") / f"MK0_MLU_{end}"
    mask.write_bytes(mask.read_bytes()[:-40])
    (cell(root, 421, "05", "empty") / f"MK0_MLU_{end}").write_bytes(b"")
    tiff(cell(root, 421, "05", "larger") / f"MK0_MLU_{end}", drawn((8, 9)))
    tiff(cell(root, 421, "05", "real") / f"MK0_MLU_{end}", drawn().astype(np.float32))
    tiff(cell(root, 421, "05", "complex") / f"MS1_IVV_{end}", np.ones((8, 8), np.complex64))
    tiff(cell(root, 421, "05", "two_bands") / f"MS1_IVV_{end}", np.ones((2, 8, 8), np.float32))
    tiff(cell(root, 421, "05", "twice") / "SL1_IVH_421_05_20170423.tif", np.ones((8, 8), np.float32))
    tiff(cell(root, 421, "05", "mixed", labels="dry") / "MK0_MLU_470_01_20170504.tif", drawn())
    tiff(root / "421/05/slc/MS1_421_20150720_7_14.tif", np.ones((4, 8, 8), np.float32))  # the other product
    done, rows = read(root, tmp_path)
    assert set(rows) == {"whole"} and done.skipped_count == 10
    listed = {line["where"]: line["reason"] for line in map(json.loads, (tmp_path / "skipped.jsonl").read_text().splitlines())}
    for name, file, reason in (
        ("no_date", "", "no SL2_IVV"),
        ("cut", f"/MK0_MLU_{end}", ""),
        ("empty", f"/MK0_MLU_{end}", "an empty file"),
        ("larger", f"/MK0_MLU_{end}", "8x9 pixels where SL2_IVV has 8x8"),
        ("real", f"/MK0_MLU_{end}", "values of float32 where uint8 is wanted"),
        ("complex", f"/MS1_IVV_{end}", "values of complex64"),
        ("two_bands", f"/MS1_IVV_{end}", "2 bands"),
        ("twice", "", "several files SL1_IVH"),
        ("mixed", "", "files of several events or areas: 421 05, 470 01"),
        ("slc", "/MS1_421_20150720_7_14.tif", "not a file of Kuro Siwo's GRD product"),
    ):
        assert reason in listed.pop(f"421/05/{name}{file}")
    assert not listed
    with pytest.raises(TilthError, match="values of complex64"):
        ingest(root, tmp_path / "strict.lance", reader=use("reader", "kuro_siwo"), strict=True)
    with pytest.raises(TilthError, match="no row could be read") as caught:
        read(root / "421/05/slc", tmp_path / "none")
    assert "GRD product" in str(caught.value.hint)


def test_a_catalogue_that_cannot_be_read_is_listed(tmp_path):
    published(tmp_path / "in")
    for text in ("Floods: [", "Floods: []", "CL_ZONES: []\nFloods: [{act_id: 421, aois: [{aoi_id: '05', cl_zone: 9}]}]"):
        (tmp_path / "in/catalogue.yaml").write_text(text)
        done, rows = read(tmp_path / "in", tmp_path / "out")
        assert rows["ab12"]["climate"] is None and [item.where for item in done.skipped] == ["catalogue.yaml"]


def test_a_batch_holds_a_few_cells_however_many_there_are(tmp_path):
    for number in range(6):
        cell(tmp_path, 421, "05", f"{number:04d}", (448, 448))
    sizes = [batch.num_rows for batch in KuroSiwo(tmp_path).batches(SkipList())]
    assert sum(sizes) == 6 and max(sizes) <= 2  # of 5.8 MB each


def test_dry_cells_are_negatives_and_what_is_invalid_or_unlabelled_counts_for_nothing(tmp_path):
    published(tmp_path / "in")
    corpus = read(tmp_path / "in", tmp_path)[0].corpus
    order = corpus.table(["id"])["id"].to_pylist()
    water, dry, unlabelled = (order.index(name) for name in ("ab12", "cd34", "ef56"))
    masks = examples(corpus, tmp_path / "a")[1].mask
    assert (masks[dry] == 0).all() and (masks[unlabelled] == -100).all()
    assert masks[water, :4, 0].tolist() == [-100, 1, 2, 0]
    rows, batch = examples(corpus, tmp_path / "b", valid="valid")
    assert batch.mask[dry, :, 0].tolist() == [-100] + [0] * 7 and (batch.mask[unlabelled] == -100).all()
    # Where nothing was seen radar is 0, as in the paper's code; NaN of VV after the event is the clamp's limit.
    scaled = (batch.pixel_values - torch.tensor(rows.sample.mean)[:, None, None]) / torch.tensor(rows.sample.std)[:, None, None]
    assert torch.allclose(scaled[:, :, 0, 0], torch.tensor([-0.0953 / 0.0427, -0.0264 / 0.0215] * 3))
    assert torch.allclose(scaled[:, 4, 7, 0], torch.tensor((0.15 - 0.0953) / 0.0427))
    paper = examples(corpus, tmp_path / "c", valid="valid", keep=[2, 1, 0])[1].pixel_values  # post, pre1, pre2
    assert torch.equal(paper, batch.pixel_values[:, [4, 5, 2, 3, 0, 1]])
    logits = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.where(batch.mask[:, None] == -100, torch.full_like(logits, 7.0), logits)
    for loss in LOSSES.values():
        assert [x.tolist() for x in loss(logits, batch.mask, None)] == [x.tolist() for x in loss(other, batch.mask, None)]
        assert loss(logits[[unlabelled]], batch.mask[[unlabelled]], None)[0] == 0
    counted = confusion(logits.argmax(1), batch.mask, 3)
    assert torch.equal(counted, confusion(other.argmax(1), batch.mask, 3))
    assert counted.sum((1, 2))[[water, dry, unlabelled]].tolist() == [56, 56, 0] and counted[dry, 1:].sum() == 0


def test_a_recipe_learns_from_other_events_than_it_is_tested_on(tmp_path, monkeypatch):
    for number, (event, area) in enumerate([(421, "05"), (470, "01"), (514, "02"), (555, "01")] * 2):
        cell(tmp_path / "KuroSiwo", event, area, f"{number:02d}aa", (16, 16), "dry" if number == 5 else "water", number)
    for number in range(2):
        cell(tmp_path / "KuroSiwo", 421, None, f"{number}bcc", (16, 16), None, number)
    (tmp_path / "KuroSiwo/catalogue.yaml").write_text(CATALOGUE)
    batches = {"segmentation": {"dates": 3, "clamp": 0.15, **CONSTANTS, "valid": "valid"}}
    once = {"training": {"batch_size": 2, "compile": False}, "budget": {"steps": 1}}
    split = {"data": "labelled", "column": "event", "parts": {"train": [421, 470, 514], "test": [555]}}
    recipe = {
        "data": {
            "labelled": {"source": "KuroSiwo", "reader": {"kuro_siwo": {"labelled": True}}},
            "unlabelled": {"source": "KuroSiwo", "where": "NOT labelled"},  # the reader is detected
        },
        "stages": {
            "train": {"group_split": {**split, "take": "train"}},
            "test": {"group_split": {**split, "take": "test"}},
            "model": {
                "pretrain": {
                    "data": "train",
                    "backbone": {"unet": {"classes": 3, "widths": [4, 8]}},
                    "batches": batches,
                    "objective": "segmentation",
                    **once,
                }
            },
            "scores": {
                "evaluate": {
                    "model": "model",
                    "benchmark": {"segmentation": {"test": "test", "groups": ["event", "climate"], "batches": batches}},
                }
            },
            "encoder": {
                "pretrain": {
                    "data": "unlabelled",
                    "backbone": {"patches": {"width": 16, "depth": 1, "heads": 2, "patch": 4}},
                    "batches": batches,
                    "objective": {"mae": {"normalise": False, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}},
                    **once,
                }
            },
        },
    }
    (tmp_path / "floods.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILTH_STORE", str(tmp_path / "store"))
    tilth("run", "floods.yaml", "--out", "done", "--quiet")
    record = json.loads((tmp_path / "done/run.json").read_text())
    assert {entry["name"]: entry["rows"] for entry in record["data"]} == {"labelled": 8, "unlabelled": 2}
    events = [Corpus.open(tmp_path / "done" / part / "corpus.lance").table(["event"])["event"] for part in ("train", "test")]
    assert [sorted(set(part.to_pylist())) for part in events] == [[421, 470, 514], [555]]
    stages = {stage["name"]: stage["metrics"] for stage in record["stages"]}
    assert 0 <= stages["scores"]["miou"] <= 1 and np.isfinite(stages["encoder"]["loss"])
    # Of the two test cells of 16 x 16 the first row of pixels was not seen.
    tables = [json.loads(line) for line in (tmp_path / "done/scores/exhibits.jsonl").read_text().splitlines()]
    assert ["555", 2 * 15 * 16] in [row[:2] for table in tables for row in table.get("rows", [])]
