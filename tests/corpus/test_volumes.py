"""Volumes become tiles: NIfTI in canonical orientation, DICOM slices in their order, differing spacing kept or made one."""

import gzip
import sys
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from tilth.corpus.arrays import unpacked
from tilth.corpus.detect import detect
from tilth.corpus.ingest import ingest
from tilth.corpus.readers.volumes import Volumes
from tilth.corpus.skipped import SkipList
from tilth.corpus.tiling import stitched
from tilth.errors import TilthError
from tilth.registry import use

nib = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


def tiles(source, out, **settings):
    done = ingest(source, out / "corpus.lance", reader=use("reader", "volumes", **settings))
    return done, done.corpus.table().to_pylist()


def whole(rows, shape):
    cut = [((r["plane"], r["row"], r["column"]), unpacked(r["array"])) for r in rows]
    return stitched(cut, shape, weights="uniform")


def volume(*shape, dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(dtype)


def reasons(done):
    return {item.where: item.reason for item in done.skipped}


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ILA"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_is_turned_to_ras_and_cut(tmp_path, codes, ending):
    values = volume(7, 9, 11)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(values, affine).as_reoriented(nib.orientations.axcodes2ornt(codes))
    (tmp_path / "in" / "brain").mkdir(parents=True)
    nib.save(image, tmp_path / "in" / "brain" / f"a{ending}")
    canonical = nib.as_closest_canonical(nib.load(tmp_path / "in" / "brain" / f"a{ending}"))
    expected = np.asarray(canonical.dataobj).transpose(2, 1, 0)
    done, rows = tiles(tmp_path / "in", tmp_path, size=[4, 5, 6], overlap=[1, 0, 2])
    assert done.corpus.kind == "volume" and not done.skipped and detect(tmp_path / "in").kind == "volume"
    assert np.array_equal(whole(rows, expected.shape)[0], expected)
    first = unpacked(rows[0]["array"])
    assert first.dtype == np.int16 and first.shape == (1, 4, 5, 6) and rows[0]["orientation"] == "SAR"
    assert rows[0]["spacing"] == list(canonical.header.get_zooms()[::-1]) and rows[0]["label"] == "brain"
    assert rows[0]["source"] == f"brain/a{ending}" and rows[1]["id"] == f"brain/a{ending}@0,0,1"
    assert (rows[1]["plane"], rows[1]["row"], rows[1]["column"]) == (0, 0, 1)


def test_a_fourth_axis_is_channels_and_scaling_is_applied(tmp_path):
    values = volume(5, 6, 7, 3)
    image = nib.Nifti1Image(values, np.diag([2, 2, 2, 1]))
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    expected = np.asarray(nib.load(tmp_path / "a.nii").dataobj).transpose(3, 2, 1, 0)
    _, rows = tiles(tmp_path / "a.nii", tmp_path)
    found = unpacked(rows[0]["array"])
    assert len(rows) == 1 and found.dtype == np.float32 and np.allclose(found, expected, atol=1e-4)
    assert rows[0]["bands"] == ["B1", "B2", "B3"] and rows[0]["spacing"] == [2000.0] * 3
    nib.save(nib.Nifti1Image(volume(5, 6, 7, 1, 2), np.eye(4)), tmp_path / "five.nii")
    _, rows = tiles(tmp_path / "five.nii", tmp_path / "2")
    assert unpacked(rows[0]["array"]).shape == (2, 7, 6, 5)


def test_odd_nifti_is_listed(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    nib.save(nib.Nifti1Image(volume(20, 20, 20), np.eye(4)), source / "good.nii")
    data = (source / "good.nii").read_bytes()
    (source / "cut.nii").write_bytes(data[:-100])
    (source / "cut.nii.gz").write_bytes(gzip.compress(data)[:-2000])
    (source / "head.nii").write_bytes(data[:200])
    (source / "zero.nii").write_bytes(b"")
    (source / "text.nii").write_text("no volume")
    (source / "notes.txt").write_text("notes")
    nib.save(nib.Nifti1Image(volume(4, 4, 4, 3), np.eye(4)), source / "three.nii")
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), source / "nothing.nii")
    done, rows = tiles(source, tmp_path, size=12)
    assert {r["source"] for r in rows} == {"good.nii"}
    assert {w.partition("@")[0] for w in reasons(done)} == {
        "cut.nii", "cut.nii.gz", "head.nii", "zero.nii", "text.nii", "notes.txt", "three.nii", "nothing.nii"
    }  # fmt: skip
    assert len(done.skipped) == 8  # what is broken as a whole once, not tile by tile
    assert reasons(done)["zero.nii"] == "an empty file" and reasons(done)["nothing.nii@0,0,0"] == "nothing but no-data"
    assert "it has 3 bands, and those with 1 are read" in reasons(done)["three.nii"]


@pytest.mark.parametrize("spacing", [1.0, [2.0, 1.5, 3.0], [0.7, 4.0, 2.0]])
def test_differing_spacing_is_kept_or_made_one_without_seams(tmp_path, spacing):
    source = tmp_path / "in"
    source.mkdir()
    smooth = ndimage.gaussian_filter(volume(24, 20, 16, dtype=np.float32), 2)
    nib.save(nib.Nifti1Image(smooth, np.diag([1, 1.5, 2, 1])), source / "a.nii")
    nib.save(nib.Nifti1Image(smooth, np.diag([2, 2, 2, 1])), source / "b.nii.gz")
    np.save(source / "unknown.npy", smooth)
    kept = {row["source"]: row["spacing"] for row in tiles(source, tmp_path / "1")[1]}
    assert kept == {"a.nii": [2, 1.5, 1], "b.nii.gz": [2, 2, 2], "unknown.npy": None}
    done, rows = tiles(source, tmp_path / "2", size=9, overlap=2, spacing=spacing)
    assert list(reasons(done)) == ["unknown.npy"] and "spacing is unknown" in reasons(done)["unknown.npy"]
    wanted = spacing if isinstance(spacing, list) else [spacing] * 3
    for name, own in (("a.nii", [2, 1.5, 1]), ("b.nii.gz", [2, 2, 2])):
        parts = [row for row in rows if row["source"] == name]
        shape = [round(n * o / w) for n, o, w in zip((16, 20, 24), own, wanted)]
        zoom = [new / n for new, n in zip(shape, (16, 20, 24))]
        expected = ndimage.zoom(smooth.transpose(2, 1, 0), zoom, order=1, grid_mode=True, mode="nearest")
        assert np.abs(whole(parts, shape)[0] - expected).max() < 1e-3 * np.abs(smooth).max()
        assert np.allclose(parts[0]["spacing"], np.array((16, 20, 24)) * own / shape)
        assert unpacked(parts[0]["array"]).dtype == np.float32


def slices(folder, values, *, uid="1.2.3", along=(1, 0, 0, 0, 1, 0), step=2.5, names=None, slope=2.0, intercept=-1000.0, **more):
    """Files of a series along the normal of `along`, in scrambled order of names."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(along[:3], along[3:])
    names = names or np.random.default_rng(0).permutation(len(values))
    paths = []
    for number, (plane, name) in enumerate(zip(values, names)):
        header = pydicom.Dataset()
        header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{uid}.{number}"
        header.SeriesInstanceUID, header.Modality = uid, "CT"
        header.Rows, header.Columns = plane.shape
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.SamplesPerPixel, header.PixelRepresentation = 15, 1, 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.ImagePositionPatient = [float(v) for v in np.array([5, -7, 11]) + normal * step * number]
        header.ImageOrientationPatient, header.PixelSpacing, header.SliceThickness = list(along), [0.5, 0.75], 2.5
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.PixelData = plane.astype("<i2").tobytes()
        for keyword, value in more.items():
            setattr(header, keyword, value)
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        path = folder / f"{name}.dcm"
        pydicom.dcmwrite(path, header, enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    "along,orientation",
    [((1, 0, 0, 0, 1, 0), "SPL"), ((0, 1, 0, 0, 0, -1), "RIP"), ((1, 0, 0, 0, 0, -1), "PIL"), ((0.8, 0.6, 0, 0, 0, -1), "PIL")],
)
def test_slices_become_a_volume_in_their_order(tmp_path, along, orientation):
    values = volume(7, 6, 5)
    slices(tmp_path / "in" / "ward" / "patient", values, along=along)
    done, rows = tiles(tmp_path / "in", tmp_path, size=4)
    assert not done.skipped and detect(tmp_path / "in").kind == "volume"
    assert np.allclose(whole(rows, (7, 6, 5))[0], values * 2.0 - 1000)
    row = rows[0]
    assert np.allclose(row["spacing"], [2.5, 0.5, 0.75]) and (row["modality"], row["orientation"]) == ("CT", orientation)
    assert (row["source"], row["label"], row["nodata"]) == ("ward/patient", "ward", 0)
    assert unpacked(row["array"]).dtype == np.float32 and row["bands"] == ["B1"]


def test_several_series_in_a_folder_are_several_volumes(tmp_path):
    first, second = volume(3, 4, 4), volume(5, 6, 4, seed=1)
    slices(tmp_path / "in", first, uid="1.1", names=["c", "a", "e"])
    slices(tmp_path / "in", second, uid="1.2", names=["b", "d", "f", "g", "h"], slope=1, intercept=0)
    slices(tmp_path / "in" / "deeper", first, uid="1.1")
    done, rows = tiles(tmp_path / "in", tmp_path)
    assert not done.skipped
    found = {row["source"]: unpacked(row["array"])[0] for row in rows}
    assert found.keys() == {".#1.1", ".#1.2", "deeper"} and np.array_equal(found[".#1.2"], second)
    assert np.array_equal(found[".#1.1"], first * 2.0 - 1000) and np.array_equal(found["deeper"], found[".#1.1"])


def test_missing_and_odd_slices_are_listed(tmp_path):
    values = volume(8, 4, 4)
    names = list("abcdefgh")
    paths = slices(tmp_path / "in", values, names=names)
    paths[3].unlink()  # d is missing: filled
    slices(tmp_path / "in", values[:1, :2], names=["size"])  # of differing size
    slices(tmp_path / "in", values[:1], names=["turned"], along=(0, 1, 0, 0, 0, 1))
    slices(tmp_path / "in", values[:1], names=["again"])  # where a lies
    slices(tmp_path / "in", values[:1], names=["nowhere"], ImagePositionPatient=None)
    slices(tmp_path / "in", values[:1], names=["coloured"], SamplesPerPixel=3)
    slices(tmp_path / "in", values[:1], names=["frames"], NumberOfFrames=2)
    bare = slices(tmp_path / "in", values[:1], names=["report"])[0]
    header = pydicom.dcmread(bare)
    del header.PixelData
    header.save_as(bare)
    whole_ = paths[5].read_bytes()
    paths[5].write_bytes(whole_[:-9])  # f breaks off
    (tmp_path / "in" / "zero.dcm").write_bytes(b"")
    (tmp_path / "in" / "text.dcm").write_text("no slice")
    done, rows = tiles(tmp_path / "in", tmp_path)
    found = reasons(done)
    assert found["report.dcm"] == "no pixel data (modality CT)" and found["zero.dcm"] == "an empty file"
    assert found["size.dcm"].startswith("its size (2, 4) differs") and found["turned.dcm"].startswith("its orientation")
    assert found["again.dcm"] == "lies where a.dcm lies" or found["a.dcm"] == "lies where again.dcm lies"
    assert found["nowhere.dcm"].startswith("no position") and found["coloured.dcm"] == "a slice in colour"
    assert found["frames.dcm"].startswith("2 frames") and found["text.dcm"].startswith("not DICOM")
    assert found["f.dcm"].startswith("its pixels cannot be decoded")
    assert found["."] == "the slice at plane 3 is missing: filled with NaN" and len(found) == 11
    array = unpacked(rows[0]["array"])[0]
    assert len(rows) == 1 and np.isnan(array[[3, 5]]).all() and rows[0]["nodata"] == 0.25
    rest = [0, 1, 2, 4, 6, 7]
    assert np.array_equal(array[rest], values[rest] * 2.0 - 1000)


def test_padding_is_nan_and_uneven_series_are_listed(tmp_path):
    values = np.abs(volume(3, 4, 4)) + 1
    values[:, 0] = -2000
    slices(tmp_path / "in" / "padded", values, PixelPaddingValue=-2000)
    uneven = slices(tmp_path / "in" / "uneven", values, uid="2")
    slices(tmp_path / "in" / "uneven", values[:2], uid="2", step=3.9 * 2.5, names=["x", "y"])
    sparse = slices(tmp_path / "in" / "sparse", volume(12, 4, 4), uid="3", names=list(range(12)))
    for number in range(2, 11):
        sparse[number].unlink()
    done, rows = tiles(tmp_path / "in", tmp_path)
    assert uneven and {row["source"] for row in rows} == {"padded"}
    array = unpacked(rows[0]["array"])[0]
    assert np.isnan(array[:, 0]).all() and rows[0]["nodata"] == 0.25 and not np.isnan(array[:, 1:]).any()
    assert "not evenly spaced" in reasons(done)["uneven"] and set(reasons(done)) >= {"uneven", "sparse"}


def test_one_slice_and_dicom_without_an_ending(tmp_path):
    path = slices(tmp_path / "in", volume(1, 4, 5), names=["only"])[0]
    path.rename(tmp_path / "in" / "IM0001")
    assert detect(tmp_path / "in").reader == "volumes" and detect(tmp_path / "in" / "IM0001").kind == "volume"
    for source, name in ((tmp_path / "in", "."), (tmp_path / "in" / "IM0001", "IM0001")):
        _, rows = tiles(source, tmp_path / "out" / name)
        assert (
            rows[0]["source"] == name
            and unpacked(rows[0]["array"]).shape == (1, 1, 4, 5)
            and rows[0]["spacing"] == [2.5, 0.5, 0.75]
        )


def test_numpy_volumes_when_asked_for(tmp_path):
    values = volume(6, 7, 8, dtype=np.float32)
    np.save(tmp_path / "three.npy", values)
    np.save(tmp_path / "last.npy", np.stack([values, values + 1], -1))
    np.savez(tmp_path / "first.npz", v=np.stack([values, values + 1]))
    np.save(tmp_path / "flat.npy", values[0])
    done = ingest(tmp_path / "three.npy", tmp_path / "o.lance", kind="volume")
    assert done.corpus.kind == "volume" and np.array_equal(unpacked(done.corpus.table()["array"][0].as_py())[0], values)
    for name in ("last.npy", "first.npz"):
        _, rows = tiles(tmp_path / name, tmp_path / name[:2], size=5)
        assert np.array_equal(whole(rows, (6, 7, 8)), np.stack([values, values + 1]))
    with pytest.raises(TilthError, match="2 axes is no volume"):
        tiles(tmp_path / "flat.npy", tmp_path / "flat")


@pytest.mark.parametrize("package", ["nibabel", "pydicom"])
def test_without_the_package_it_is_said(tmp_path, monkeypatch, package):
    slices(tmp_path / "pydicom", volume(2, 4, 4))
    (tmp_path / "nibabel").mkdir()
    nib.save(nib.Nifti1Image(volume(4, 4, 4), np.eye(4)), tmp_path / "nibabel" / "a.nii")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TilthError, match=r"pip install 'tilth\[scenes\]'"):
        tiles(tmp_path / package, tmp_path)


@pytest.mark.parametrize("settings", [{"overlap": 96}, {"size": [4, 4]}, {"spacing": [1.0, 1.0]}])
def test_settings_that_cannot_be(tmp_path, settings):
    np.save(tmp_path / "a.npy", volume(4, 4, 4))
    with pytest.raises(TilthError):
        tiles(tmp_path / "a.npy", tmp_path, **settings)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_memory_does_not_grow_with_a_volume(tmp_path, ending):
    peaks = []
    for depth in (64, 640):
        nib.save(nib.Nifti1Image(np.ones((128, 128, depth), np.int16), np.eye(4)), tmp_path / f"{depth}{ending}")
        tracemalloc.start()
        rows = sum(batch.num_rows for batch in Volumes(tmp_path / f"{depth}{ending}", size=64).batches(SkipList()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert rows == depth // 16
    assert peaks[1] - peaks[0] < 20e6 and peaks[1] < 30e6
