"""Folders of images and of sound: encoded bytes as they are, the folder they lie in as their class.

Notable: an image is decoded once, at an eighth of its size where JPEG allows it, because a header does not tell a truncated
file from a whole one; of a sound the last frame is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import soundfile

from tilth.corpus import walk
from tilth.corpus.pictures import MOST, checked
from tilth.corpus.readers.base import PLACE, Reader, gather
from tilth.corpus.skipped import SkipList
from tilth.registry import PositiveInt, method

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SOUND_SUFFIXES = {".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".ogg", ".opus", ".w64", ".wav"}


def image_facts(data: bytes) -> dict[str, Any]:
    """Width, height (pixels) and format of an encoded image. Raises ValueError, saying why, for one that cannot be decoded."""
    return checked(data)[0]


def sound_facts(data: bytes) -> dict[str, Any]:
    """Sample rate (Hz), channels, frames and seconds of encoded sound. Raises ValueError, saying why, when it is not whole."""
    if data[:4] == b"RIFF" and len(data) >= 8:
        stated = int.from_bytes(data[4:8], "little") + 8
        if len(data) < stated < 0xFFFFFFFF:  # a recorder that streams leaves the greatest number here
            raise ValueError(f"not a whole recording: {len(data)} of {stated} bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            frames = sound.frames
            if frames <= 0:
                raise ValueError("a recording of no length")
            sound.seek(frames - 1)
            if not len(sound.read(1)):
                raise ValueError("not a whole recording: its last frame is missing")
            return {
                "sample_rate": sound.samplerate,
                "channels": sound.channels,
                "frames": frames,
                "seconds": frames / sound.samplerate,
            }
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"not a whole recording: {str(error).removeprefix('Error opening ')}") from None


def label_of(name: str) -> str | None:
    """The folder a file lies in, relative to what is read: its class."""
    return name.rpartition("/")[0] or None


@method("reader", "images")
class Images(Reader):
    """Every image at or below a path: id (relative path), image (encoded bytes), label (its folder), width, height, format.

    most: pixels; a larger image is listed and left out, a JPEG when an eighth of its width and height is.
    """

    gives = "image"

    def __init__(self, path: str | Path, /, *, most: PositiveInt = MOST) -> None:
        super().__init__(path)
        self.most = most

    def schema(self) -> pa.Schema:
        facts = [("width", pa.int32()), ("height", pa.int32()), ("format", pa.string())]
        return pa.schema([(PLACE, pa.string()), ("image", pa.binary()), ("label", pa.string()), *facts])

    def rows(self, skip: SkipList) -> Iterator[dict[str, Any]]:
        for path, name in walk.files(self.path, skip):
            data = walk.read(path, name, skip)
            if data is None:
                continue
            try:
                facts, note = checked(data, self.most)
            except ValueError as error:
                skip(name, str(error))
                continue
            if note:
                skip(name, note, kept=True)
            yield {PLACE: name, "image": data, "label": label_of(name), **facts}

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        return gather(self.rows(skip), self.schema())


@method("reader", "sounds")
class Sounds(Reader):
    """Every recording at or below a path: id (relative path), sound (encoded bytes), label (its folder), sample_rate ..."""

    gives = "sound"

    def __init__(self, path: str | Path, /) -> None:
        super().__init__(path)

    def schema(self) -> pa.Schema:
        facts = [("sample_rate", pa.int32()), ("channels", pa.int32()), ("frames", pa.int64()), ("seconds", pa.float64())]
        return pa.schema([(PLACE, pa.string()), ("sound", pa.binary()), ("label", pa.string()), *facts])

    def rows(self, skip: SkipList) -> Iterator[dict[str, Any]]:
        for path, name in walk.files(self.path, skip):
            data = walk.read(path, name, skip)
            if data is None:
                continue
            try:
                facts = sound_facts(data)
            except ValueError as error:
                skip(name, str(error))
                continue
            yield {PLACE: name, "sound": data, "label": label_of(name), **facts}

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        return gather(self.rows(skip), self.schema())
