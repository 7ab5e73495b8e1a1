"""Scenes become tiles: every pixel as it was, no-data known, oddities listed, memory independent of the scene."""

import subprocess
import sys

import numpy as np
import pytest

from tilth.corpus.arrays import unpacked
from tilth.corpus.detect import detect
from tilth.corpus.ingest import ingest
from tilth.corpus.tiling import stitched
from tilth.errors import TilthError
from tilth.registry import use

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def tiff(path, array, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = more.pop("names", None)
    more = {"photometric": "minisblack", "alpha": "unspecified", **more}
    bands, height, width = array.shape
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=array.dtype, **more) as file:
        file.write(array)
        if names:
            file.descriptions = names
    return path


def ramp(bands=4, height=40, width=50, dtype=np.int16):
    return np.arange(bands * height * width).reshape(bands, height, width).astype(dtype)


def tiles(source, out, **settings):
    done = ingest(source, out / "corpus.lance", reader=use("reader", "scenes", **settings))
    return done, done.corpus.table().to_pylist()


def whole(rows, shape):
    return stitched([((r["row"], r["column"]), unpacked(r["array"])) for r in rows], shape, weights="uniform")


@pytest.mark.parametrize("size,overlap", [(16, 0), (16, 5), (64, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_tiles_of_a_geotiff_are_the_scene(tmp_path, size, overlap, dtype):
    array = ramp(dtype=dtype)
    tiff(tmp_path / "in" / "spring" / "a.tif", array)
    done, rows = tiles(tmp_path / "in", tmp_path, size=size, overlap=overlap)
    assert done.corpus.kind == "scene" and not done.skipped
    parts = [unpacked(row["array"]) for row in rows]
    assert {(part.dtype, part.shape) for part in parts} == {(np.dtype(dtype), (4, min(size, 40), min(size, 50)))}
    assert np.abs(whole(rows, (40, 50)) - array).max() < 1e-3
    for row, part in zip(rows, parts):
        at = row["row"], row["column"]
        assert np.array_equal(part, array[:, at[0] : at[0] + part.shape[1], at[1] : at[1] + part.shape[2]])
        assert row["id"] == f"spring/a.tif@{at[0]},{at[1]}" and row["source"] == "spring/a.tif" and row["label"] == "spring"
        assert (row["bands"], row["nodata"], row["nodata_value"], row["spacing"]) == (["B1", "B2", "B3", "B4"], 0, None, None)


def test_spacing_and_names_of_bands_are_kept(tmp_path):
    from rasterio.transform import from_origin

    tiff(tmp_path / "utm.tif", ramp(2), crs="EPSG:32630", transform=from_origin(5e5, 4e6, 10, 20), names=("VV", "VH"))
    tiff(tmp_path / "feet.tif", ramp(2), crs="EPSG:2225", transform=from_origin(6e6, 2e6, 10, 10))
    tiff(tmp_path / "degrees.tif", ramp(2, 2, 2), crs="EPSG:4326", transform=from_origin(10, 60.0005, 0.0005, 0.0005))
    rows = {row["source"]: row for row in tiles(tmp_path, tmp_path / "out")[1]}
    assert rows["utm.tif"]["bands"] == ["VV", "VH"] and rows["utm.tif"]["spacing"] == [20, 10]
    assert rows["utm.tif"]["crs"] == "EPSG:32630" and np.allclose(rows["feet.tif"]["spacing"], 10 * 0.3048006, rtol=1e-6)
    # One degree at 60 degrees north: 111.412 km along the meridian, 55.800 km along the parallel (WGS 84).
    assert np.allclose(rows["degrees.tif"]["spacing"], [0.0005 * 111412, 0.0005 * 55800], rtol=1e-4)


def test_no_data_is_nan_in_floats_known_in_whole_numbers_and_empty_tiles_are_left_out(tmp_path):
    array = ramp(2, 32, 48, np.float32)
    array[:, :16, :16] = -9999
    array[0, 16:, 16:32] = np.nan
    tiff(tmp_path / "in" / "f.tif", array, nodata=-9999)
    done, rows = tiles(tmp_path / "in", tmp_path / "1", size=16)
    assert [(s.where, s.reason) for s in done.skipped] == [("f.tif@0,0", "nothing but no-data")] and len(rows) == 5
    shares = {(r["row"], r["column"]): r["nodata"] for r in rows}
    assert shares[16, 16] == 0.5 and sum(shares.values()) == 0.5
    part = unpacked(next(r for r in rows if (r["row"], r["column"]) == (16, 16))["array"])
    assert np.isnan(part[0]).all() and np.array_equal(part[1], array[1, 16:, 16:32])
    done, rows = tiles(tmp_path / "in", tmp_path / "2", size=32)
    part = unpacked(rows[0]["array"])
    assert np.isnan(part[:, :16, :16]).all() and rows[0]["nodata_value"] is None

    counts = ramp(2, 32, 32)
    counts[:, :8] = 7
    counts[counts == 7] = 7
    tiff(tmp_path / "whole" / "i.tif", counts, nodata=7)
    _, rows = tiles(tmp_path / "whole", tmp_path / "3")
    assert (
        rows[0]["nodata_value"] == 7
        and np.isclose(rows[0]["nodata"], 0.25)
        and np.array_equal(unpacked(rows[0]["array"]), counts)
    )

    empty = np.full((1, 8, 8), np.nan, np.float32)
    np.save(tmp_path / "empty.npy", empty)
    with pytest.raises(TilthError, match="nothing but no-data"):
        tiles(tmp_path / "empty.npy", tmp_path / "4")


def test_of_mixed_numbers_of_bands_the_most_frequent_is_read(tmp_path):
    source = tmp_path / "in"
    for name, bands in {"a": 4, "b": 6, "c": 4, "d": 1}.items():
        tiff(source / f"{name}.tif", ramp(bands))
    done, rows = tiles(source, tmp_path / "1")
    assert {r["source"] for r in rows} == {"a.tif", "c.tif"}
    assert {s.where: s.reason for s in done.skipped} == {
        "b.tif": "it has 6 bands, and those with 4 are read; to read these instead, give the reader bands=6",
        "d.tif": "it has 1 band, and those with 4 are read; to read these instead, give the reader bands=1",
    }
    done, rows = tiles(source, tmp_path / "2", bands=6)
    assert {r["source"] for r in rows} == {"b.tif"} and done.skipped_count == 3
    (source / "a.tif").unlink()
    assert {len(r["bands"]) for r in tiles(source, tmp_path / "3")[1]} == {6}  # of as frequent ones the greatest


def test_what_cannot_be_read_is_listed(tmp_path):
    source = tmp_path / "in"
    noise = np.random.default_rng(0).integers(0, 9999, (4, 64, 64)).astype(np.int16)
    data = tiff(source / "good.tif", noise, compress="deflate", blockysize=16).read_bytes()
    (source / "cut.tif").write_bytes(data[: len(data) // 2])
    (source / "zero.tif").write_bytes(b"")
    (source / "text.tif").write_text("no scene")
    (source / "away.tif").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Int16" band="1"><SimpleSource>'
        f"<SourceFilename>{source / 'good.tif'}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (source / "notes.txt").write_text("notes")
    done, rows = tiles(source, tmp_path, size=32)
    assert {r["source"] for r in rows} - {"cut.tif"} == {"good.tif"}
    assert np.array_equal(whole([r for r in rows if r["source"] == "good.tif"], (64, 64)), noise)
    reasons = {s.where.partition("@")[0]: s.reason for s in done.skipped}
    assert reasons.keys() == {"cut.tif", "zero.tif", "text.tif", "away.tif", "notes.txt"}
    assert reasons["zero.tif"] == "an empty file" and reasons["notes.txt"] == "not a scene by its name"
    assert all(reasons[name].startswith("cannot be read") for name in ("cut.tif", "text.tif", "away.tif"))


def test_pages_beyond_the_first_are_noted(tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    pages = [Image.fromarray(ramp(1, 9, 8, np.float32)[0] + i) for i in range(3)]
    pages[0].save(tmp_path / "in" / "p.tif", save_all=True, append_images=pages[1:])
    done, rows = tiles(tmp_path / "in", tmp_path)
    assert [(s.where, s.reason, s.kept) for s in done.skipped] == [("p.tif", "3 pages: the first is used", True)] and len(
        rows
    ) == 1


@pytest.mark.parametrize(
    "shape,expected",
    [
        ((9, 8), [(1, 9, 8)]),
        ((3, 9, 8), [(3, 9, 8)]),
        ((9, 8, 3), [(3, 9, 8)]),
        ((9, 9, 9), [(9, 9, 9)]),
        ((40, 41, 33), [(40, 41, 33)]),
        ((2, 3, 9, 8), [(3, 9, 8)] * 2),
        ((2, 9, 8, 3), [(3, 9, 8)] * 2),
    ],
)
def test_numpy_arrays_by_their_axes(tmp_path, shape, expected):
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "b.npz", x=array)
    for name in ("a.npy", "b.npz"):
        assert detect(tmp_path / name).kind == "scene"
        _, rows = tiles(tmp_path / name, tmp_path / name[0])
        parts = [unpacked(row["array"]) for row in rows]
        assert [part.shape for part in parts] == expected and len({row["source"] for row in rows}) == len(rows)
        scenes = array if len(shape) == 4 else [array]
        for part, scene in zip(parts, scenes):
            last = scene.shape != part.shape and scene.ndim == 3
            assert np.array_equal(part, scene.transpose(2, 0, 1) if last else scene.reshape(part.shape))


def test_odd_numpy_files_are_listed(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    np.save(source / "good.npy", ramp())
    np.save(source / "line.npy", np.arange(4))
    np.save(source / "words.npy", np.array(["a", "b"]))
    np.save(source / "none.npy", np.zeros((0, 3, 3)))
    np.save(source / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez(source / "mixed.npz", scene=ramp(), names=np.array([{}], dtype=object), line=np.arange(3))
    (source / "cut.npy").write_bytes((source / "good.npy").read_bytes()[:500])
    (source / "cut.npz").write_bytes((source / "mixed.npz").read_bytes()[:500])
    (source / "zero.npy").write_bytes(b"")
    done, rows = tiles(source, tmp_path)
    assert [r["source"] for r in rows] == ["good.npy", "mixed.npz#scene"]
    reasons = {s.where: s.reason for s in done.skipped}
    assert reasons.keys() == {
        "line.npy", "words.npy", "none.npy", "objects.npy", "mixed.npz#names", "mixed.npz#line", "cut.npy", "cut.npz", "zero.npy"
    }  # fmt: skip
    assert "never unpickled" in reasons["objects.npy"] and "1 axes is no scene" in reasons["line.npy"]


def test_what_a_tiff_is_tells_scenes_from_pictures(tmp_path):
    from PIL import Image

    picture = np.zeros((8, 8, 3), np.uint8)
    for name, array in {"rgb": picture, "grey": picture[..., 0], "rgba": np.zeros((8, 8, 4), np.uint8)}.items():
        Image.fromarray(array).save(tmp_path / f"{name}.tif")
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.tif")
    Image.new("1", (8, 8)).save(tmp_path / "bits.tiff")
    for name in ("rgb.tif", "grey.tif", "rgba.tif", "cmyk.tif", "bits.tiff"):
        assert detect(tmp_path / name).kind == "image", name
    assert detect(tmp_path).kind == "image"
    for name, array in {
        "four": ramp(4, dtype=np.uint8), "deep": ramp(1), "float": ramp(3, dtype=np.float32), "five": ramp(5, dtype=np.uint8)
    }.items():  # fmt: skip
        tiff(tmp_path / "scenes" / f"{name}.tif", array)
        assert detect(tmp_path / "scenes" / f"{name}.tif").kind == "scene", name
    tiff(tmp_path / "scenes" / "big.tif", ramp(), BIGTIFF="YES")
    assert detect(tmp_path / "scenes" / "big.tif").kind == "scene"
    found = detect(tmp_path / "scenes")
    assert (found.kind, found.reader) == ("scene", "scenes") and "big.tif" in found.why
    assert ingest(tmp_path / "rgb.tif", tmp_path / "o.lance", kind="scene").corpus.kind == "scene"
    (tmp_path / "cut.tif").write_bytes((tmp_path / "rgb.tif").read_bytes()[:6])
    assert detect(tmp_path / "cut.tif").kind == "image"


def test_a_corpus_of_scenes_copied_is_one_of_scenes(tmp_path):
    tiff(tmp_path / "a b c with many words in its name, as prose has.tif", ramp())
    done, _ = tiles(tmp_path / "a b c with many words in its name, as prose has.tif", tmp_path / "1")
    again = ingest(done.corpus.uri, tmp_path / "2" / "corpus.lance")
    assert again.corpus.kind == "scene" and again.corpus.table().equals(done.corpus.table())


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(TilthError, match="tiles of 8 cannot overlap by 8"):
        tiles(tiff(tmp_path / "a.tif", ramp()), tmp_path, size=8, overlap=8)


def test_without_the_package_it_is_said(tmp_path, monkeypatch):
    tiff(tmp_path / "a.tif", ramp())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(TilthError, match=r"pip install 'tilth\[scenes\]'"):
        tiles(tmp_path / "a.tif", tmp_path)


MEASURED = """
import resource, sys
from tilth.corpus.readers.scenes import Scenes
from tilth.corpus.skipped import SkipList
def read(path):
    rows = sum(batch.num_rows for batch in Scenes(path).batches(SkipList()))
    return rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
read(sys.argv[1])
print(*read(sys.argv[2]), *read(sys.argv[3]))
"""


def test_memory_does_not_grow_with_a_scene(tmp_path):
    sizes = (512, 6000, 12000)
    for size in sizes:
        with rasterio.open(
            tmp_path / f"{size}.tif",
            "w",
            driver="GTiff",
            height=size,
            width=size,
            count=4,
            dtype="uint16",
            tiled=True,
            compress="deflate",
        ) as file:
            file.write(np.ones((4, 512, 512), np.uint16), window=rasterio.windows.Window(0, 0, 512, 512))
    paths = [str(tmp_path / f"{size}.tif") for size in sizes]
    done = subprocess.run([sys.executable, "-c", MEASURED, *paths], capture_output=True, text=True, check=True)
    rows, before, more, after = map(float, done.stdout.split())
    assert (rows, more) == (24**2, 47**2)
    assert after - before < 60, f"{before:.0f} MiB for 288 MB of pixels, {after:.0f} for 1.2 GB"


def test_real_scenes(data, tmp_path):
    scenes = np.load(data / "sentinel2_scenes.npy")
    done, rows = tiles(data / "sentinel2_scenes.npy", tmp_path / "1", size=64, overlap=16)
    assert detect(data / "sentinel2_scenes.npy").kind == "scene" and not done.skipped
    for number, scene in enumerate(scenes):
        own = [row for row in rows if row["source"] == f"sentinel2_scenes.npy#{number}"]
        assert np.abs(whole(own, (101, 100)) - scene.transpose(2, 0, 1)).max() < 1e-6
    assert detect(data / "sen1floods11").kind == "scene"
    done, rows = tiles(data / "sen1floods11", tmp_path / "2")
    assert {r["source"] for r in rows} == {"Spain_7370579_S2Hand.tif"} and rows[0]["bands"][8] == "B8A"
    assert np.allclose(rows[0]["spacing"], [9.97, 7.88], atol=0.01) and {s.where for s in done.skipped} == {
        "Spain_7370579_LabelHand.tif", "Spain_7370579_S1Hand.tif"
    }  # fmt: skip
    done, rows = tiles(data / "sen1floods11", tmp_path / "3", bands=2)
    with rasterio.open(data / "sen1floods11" / "Spain_7370579_S1Hand.tif") as file:
        assert rows[0]["bands"] == ["VV", "VH"] and np.allclose(whole(rows, (512, 512)), file.read(), equal_nan=True)
