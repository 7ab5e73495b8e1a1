"""Encoded pictures as arrays of bytes, whatever their mode, depth, orientation or size.

Notable: a JPEG that is much larger than what is needed is decoded at a half, a quarter or an eighth of its size; what would
need more memory than is allowed is refused from its header.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

MOST = 80_000_000  # pixels: 320 MB while a picture in colour is decoded
_DEEP = ("I", "F")  # modes of more than 8 bits begin so
_ORIENTATION = 0x0112
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def decoded(data: bytes, channels: Literal[1, 3] = 3, size: tuple[int, int] | None = None, most: int = MOST) -> NDArray[np.uint8]:
    """An encoded picture as uint8 (channels, height, width), turned as its EXIF orientation says.

    Transparency lies on white. CMYK, YCbCr, palettes and single bits become grey or RGB by PIL's conversion; one channel of 16
    or 32 bits or of floats is scaled so that its own least value is 0 and its greatest 255 (NaN and a constant: 0); of 16-bit
    colour the upper 8 bits are taken. Of several frames or pages the first is read.
    size: (height, width) to bring it to: the shorter side by bicubic interpolation with antialiasing, then a crop about the
    centre. most: pixels that are decoded at most; of a JPEG those at the reduced size that `size` allows.
    Raises ValueError, saying why, when it cannot be decoded.
    """
    try:
        with _opened(data) as image:
            mode = "L" if channels == 1 else "RGB"
            if size:  # twice what is needed, so that the bicubic filter and not the decoder decides what is seen
                height, width = _lying(size, _orientation(image))
                _reduce(image, mode, 2 * width, 2 * height)
            _check_pixels(image, most)
            image.load()
            turn = _orientation(image)  # only now: PIL turns a TIFF when it loads it, and a PNG may end with its EXIF
            plain = _plain(image, mode)
            wanted = _lying(size, turn) if size else None
            if wanted and plain.size != wanted[::-1]:
                plain = _fitted(plain, wanted)
            if turn in _TURNED:
                plain = plain.transpose(_TURNED[turn])
    except Exception as error:  # decoders raise what they come upon: OSError, SyntaxError, struct.error, IndexError ...
        raise ValueError(_reason(error)) from None
    pixels = np.asarray(plain)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def encoded(values: NDArray[np.uint8]) -> bytes:
    """A PNG of (height, width) or (height, width, 3)."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def checked(data: bytes, most: int = MOST) -> tuple[dict[str, Any], str]:
    """Width and height (pixels, as stored) and format of a picture that `decoded` will read, and a note ('' where all is used).

    It is decoded once, JPEG at an eighth of its size, because a header does not tell a truncated file from a whole one.
    Raises ValueError, saying why, for one that cannot be decoded.
    """
    try:
        # The reason is listed, so the terminal need not have a warning too.
        with warnings.catch_warnings(action="ignore"), _opened(data) as image:
            facts = {"width": image.width, "height": image.height, "format": image.format}
            _reduce(image, None, max(1, image.width // 8), max(1, image.height // 8))
            _check_pixels(image, most)
            image.load()
            _plain(image.crop((0, 0, 1, 1)), "RGB")  # a mode that has no conversion
            return facts, _frames(image)
    except Exception as error:  # as in `decoded`
        raise ValueError(_reason(error)) from None


def _opened(data: bytes) -> Image.Image:
    """The picture, its header read. PIL's own limit on pixels stays in force for what is not JPEG, at 179 million."""
    if data[:3] == b"\xff\xd8\xff":  # opened directly, because PIL's limit looks at the size before it is reduced
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data))


def _reduce(image: Image.Image, mode: str | None, width: int, height: int) -> None:
    """Have a JPEG decoded at the least of its sizes that is not below the one given."""
    if not image.info.get("progressive"):  # whose decoder holds the whole picture all the same
        image.draft(mode, (width, height))


def _check_pixels(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the limit of {most}")


def _frames(image: Image.Image) -> str:
    try:
        several = getattr(image, "is_animated", False)
    except Exception:  # a later frame is broken, which is no matter
        several = True
    if not several:
        return ""
    return "several pages: the first is used" if image.format == "TIFF" else "animated: the first frame is used"


def _orientation(image: Image.Image) -> int:
    try:
        turn = int(image.getexif().get(_ORIENTATION, 1))
        return turn if turn in _TURNED else 1
    except Exception:  # EXIF that is broken says nothing
        return 1


def _lying(size: tuple[int, int], turn: int) -> tuple[int, int]:
    """(height, width) before a picture is turned, of what is to be `size` afterwards."""
    return size[::-1] if turn >= 5 else size


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The picture in mode 'L' or 'RGB': deep values scaled to 8 bits by their range, transparency on white."""
    if image.mode.startswith(_DEEP):
        values = np.asarray(image).astype(np.float64)
        known = np.isfinite(values)
        least, greatest = (values[known].min(), values[known].max()) if known.any() else (0.0, 0.0)
        scaled = np.where(known, values - least, 0) * (255 / (greatest - least) if greatest > least else 0)
        return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert(mode)
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        layers = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layers, mask=layers.getchannel("A"))
        image = white
    return image.convert(mode)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shorter side to `size` (height, width) and a crop about the centre, as one bicubic resampling of the part that is kept."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(left + width * scale, image.width), min(top + height * scale, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels to decode: {str(error).partition(',')[0]}"
    if "cannot identify image file" in str(error):
        return "not a whole image: cannot identify image file"
    return str(error) if "more than the limit" in str(error) else f"not a whole image: {error or type(error).__name__}"
