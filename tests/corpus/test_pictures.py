"""Pictures of every kind that people have come out as bytes of one shape, or are refused with a reason before a run."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tilth.corpus.detect import detect
from tilth.corpus.ingest import ingest
from tilth.corpus.pictures import checked, decoded
from tilth.errors import TilthError
from tilth.registry import use


def encoded(image, kind="PNG", **more):
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def noise(height, width, channels=3, seed=0):
    """Smooth noise, which survives JPEG."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return small if channels == 3 else small.convert("L")


def test_colour_and_grey_as_they_are():
    image = noise(20, 30)
    pixels = decoded(encoded(image), 3)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 20, 30) and pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))
    assert np.array_equal(decoded(encoded(image), 1), np.asarray(image.convert("L"))[None])
    grey = decoded(encoded(noise(20, 30, 1)), 3)
    assert np.array_equal(grey[0], grey[1]) and np.array_equal(grey[0], np.asarray(noise(20, 30, 1)))


def test_transparency_lies_on_white():
    layers = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    layers.putpixel((1, 0), (200, 0, 0, 0))
    layers.putpixel((2, 0), (0, 0, 0, 128))
    assert decoded(encoded(layers))[:, 0].T.tolist() == [[200, 0, 0], [255, 255, 255], [127, 127, 127]]
    grey = Image.merge("LA", (Image.new("L", (2, 1), 10), Image.frombytes("L", (2, 1), b"\xff\0")))
    assert decoded(encoded(grey), 1)[0, 0].tolist() == [10, 255]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putpixel((1, 0), 1)
    assert decoded(encoded(palette))[:, 0].T.tolist() == [[0, 0, 0], [9, 8, 7]]
    assert decoded(encoded(palette, transparency=0))[:, 0].T.tolist() == [[255, 255, 255], [9, 8, 7]]
    assert decoded(encoded(palette, "GIF", transparency=0))[:, 0].T.tolist() == [[255, 255, 255], [9, 8, 7]]


def test_cmyk_is_converted():
    image = Image.merge("CMYK", [Image.new("L", (16, 16), v) for v in (0, 255, 255, 0)])
    for data in (encoded(image, "JPEG", quality=95), encoded(image, "TIFF")):
        assert np.abs(decoded(data).astype(int) - np.array([255, 0, 0])[:, None, None]).max() < 8
        assert decoded(data, 1).shape == (1, 16, 16)


@pytest.mark.parametrize("dtype,kind", [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "TIFF"), ("<f4", "TIFF")])
def test_deep_pictures_are_scaled_by_their_own_range(dtype, kind):
    values = np.array([[1000, 1255, 1510], [2000, 3000, 3550]]).astype(dtype)
    image = Image.frombytes("I;16B", (3, 2), values.tobytes()) if dtype == ">u2" else Image.fromarray(values)
    expected = np.rint((values.astype(float) - 1000) / 2550 * 255)
    data = encoded(image, kind)
    assert np.array_equal(decoded(data, 1)[0], expected) and np.array_equal(decoded(data, 3)[2], expected)
    assert checked(data)[1] == ""
    assert decoded(encoded(Image.fromarray(np.full((4, 4), 9, "<u2")))).max() == 0
    if dtype == "<f4":
        values[0, 0] = np.nan
        assert decoded(encoded(Image.fromarray(values), kind), 1)[0, 0].tolist() == [0, 0, round(255 / 2295 * 255)]


def test_single_bits_and_one_pixel():
    bits = Image.frombytes("1", (8, 1), b"\xaa")
    assert decoded(encoded(bits), 1)[0, 0].tolist() == [255, 0] * 4
    dot = encoded(Image.new("RGB", (1, 1), (3, 2, 1)))
    assert decoded(dot).tolist() == [[[3]], [[2]], [[1]]]
    assert np.array_equal(decoded(dot, 3, (16, 8)), np.broadcast_to(np.array([3, 2, 1])[:, None, None], (3, 16, 8)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(turn, kind):
    image = noise(24, 40)
    exif = Image.Exif()
    exif[0x0112] = turn
    best = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(image, kind, exif=exif, **best)
    plain = Image.open(io.BytesIO(encoded(image, kind, **best)))
    plain.getexif()[0x0112] = turn
    expected = np.asarray(ImageOps.exif_transpose(plain)).transpose(2, 0, 1)
    assert expected.shape == ((3, 24, 40) if turn < 5 else (3, 40, 24))
    assert np.abs(decoded(data).astype(int) - expected).max() == 0
    small = decoded(data, 3, (20, 12))
    whole = Image.fromarray(expected.transpose(1, 2, 0))
    assert small.shape == (3, 20, 12) and np.abs(small.astype(int) - fitted(whole, 20, 12)).max() <= 1


def fitted(image, height, width):
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (20, 48), (200, 100)])
def test_resizing_is_of_the_shorter_side_with_a_crop_about_the_centre(size):
    image = noise(90, 130)
    found = decoded(encoded(image), 3, size)
    assert found.shape == (3, *size)
    assert np.abs(found.astype(int) - fitted(image, *size)).max() <= 2
    sharp = np.zeros((100, 100), np.uint8)
    sharp[:, ::2] = 255  # without antialiasing every pixel would be 127 away
    assert np.abs(decoded(encoded(Image.fromarray(sharp)), 1, (10, 10)).astype(int) - 127).max() <= 15


def test_a_large_jpeg_is_decoded_small():
    image = noise(1600, 2000)
    data = encoded(image, "JPEG", quality=95)
    with pytest.raises(ValueError, match="2000 x 1600 pixels, more than the limit of 100000"):
        decoded(data, most=100_000)
    small = decoded(data, 3, (100, 100), most=100_000)  # 250 x 200 are enough
    assert np.abs(small.astype(int) - fitted(image, 100, 100)).max() <= 12
    assert checked(data, 100_000)[0] == {"width": 2000, "height": 1600, "format": "JPEG"}
    progressive = encoded(image, "JPEG", progressive=True)  # is held whole by its decoder
    with pytest.raises(ValueError, match="more than the limit"):
        decoded(progressive, 3, (100, 100), most=100_000)
    assert decoded(encoded(image.convert("L"), "JPEG"), 3, (64, 64)).shape == (3, 64, 64)


def huge_png(side):
    """A whole grey PNG of side x side pixels, all 0; a few hundred kilobytes."""
    packer = zlib.compressobj(9)
    row = b"\0" * (side + 1)
    body = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_twenty_thousand_pixels_do_not_need_gigabytes(tmp_path):
    import resource

    data = huge_png(20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (checked, decoded):
        with pytest.raises(ValueError, match="too many pixels to decode"):
            read(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    with pytest.raises(ValueError, match="12000 x 12000 pixels, more than the limit of 80000000"):
        checked(huge_png(12_000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "huge.png").write_bytes(data)
    (tmp_path / "in" / "plain.png").write_bytes(encoded(noise(100, 100)))
    (tmp_path / "in" / "small.png").write_bytes(encoded(noise(20, 20)))
    done = ingest(tmp_path / "in", tmp_path / "a.lance")
    assert [s.where for s in done.skipped] == ["huge.png"] and "too many pixels" in done.skipped[0].reason and done.read == 2
    done = ingest(tmp_path / "in", tmp_path / "b.lance", reader=use("reader", "images", most=1000))
    assert "100 x 100 pixels, more than the limit of 1000" in {s.where: s.reason for s in done.skipped}["plain.png"]


def test_animated_and_paged_pictures_give_their_first_frame_and_it_is_noted(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    source = tmp_path / "in"
    source.mkdir()
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
        assert decoded(data)[:, 4, 4].tolist() == [255, 0, 0]
        (source / f"a.{kind.lower()}").write_bytes(data)
    done = ingest(source, tmp_path / "out.lance")
    assert done.read == 4 and all(s.kept for s in done.skipped)
    assert {s.where: s.reason.partition(":")[0] for s in done.skipped} == {
        "a.gif": "animated", "a.png": "animated", "a.tiff": "several pages", "a.webp": "animated"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"])
def test_truncated_and_empty_pictures_are_listed_at_ingestion(tmp_path, kind):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
    source = tmp_path / "in"
    source.mkdir()
    suffix = {"JPEG": "jpg", "JPEG2000": "jp2"}.get(kind, kind.lower())
    for share in (0, 1, 30, 60, 90, 100):
        (source / f"{share}.{suffix}").write_bytes(data[: len(data) * share // 100])
    done = ingest(source, tmp_path / "out.lance")
    assert done.corpus.table(["id"])["id"].to_pylist() == [f"100.{suffix}"]
    reasons = {s.where: s.reason for s in done.skipped}
    assert reasons.keys() == {f"{share}.{suffix}" for share in (0, 1, 30, 60, 90)} and reasons[f"0.{suffix}"] == "an empty file"
    assert all(s.startswith("not a whole image: ") for where, s in reasons.items() if where[:2] != "0.")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]), st.data())
def test_broken_bytes_give_a_reason_or_a_picture_and_ingestion_tells_which(kind, draw):
    data = bytearray(encoded(noise(16, 16), kind))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        checked(bytes(data), 10_000)
    except ValueError:
        return
    assert decoded(bytes(data), 3, (8, 8), 10_000_000).shape == (3, 8, 8)


def test_a_folder_with_one_picture(tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "only.png").write_bytes(encoded(noise(9, 9)))
    done = ingest(tmp_path / "in", tmp_path / "out.lance")
    assert (done.read, done.skipped, done.corpus.kind) == (1, [], "image") and detect(tmp_path / "in").kind == "image"
    (tmp_path / "in" / "cat" / "only.png").write_bytes(b"")
    with pytest.raises(TilthError, match="no row could be read"):
        ingest(tmp_path / "in", tmp_path / "out2.lance")
