"""Generated radar scenes of floods: three dates, of which only the last shows the flood, in several events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tilth.context import Context
from tilth.contracts import Stage, method
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.registry import NonNegative, Positive, PositiveInt

CLIMATES = ("dry", "temperate", "tropical")
DATES, CHANNELS, INVALID = 3, 2, 3
_LAND, _WATER = (0.08, 0.02), (0.006, 0.0015)  # sigma0 of VV and VH, linear


@method("stage", "floods", systems=[6])
class Floods(Stage):
    """Tiles of radar scenes before (twice) and after a flood, with permanent water and flood in the mask.

    Every event is one scene of side x side tiles: smooth random terrain, permanent water below a level of the event's, flood below a
    second one at the last date; a fifth to two fifths of it are water then, and between a tenth and nine tenths of that permanent. Backscatter (linear sigma0) is that of land, which varies over some pixels, or of water, times a gain plus
    an offset of the event's and channel's, times gamma speckle of `looks`, drawn anew for every date. One corner of each scene has
    no data. events: how many; size: of a tile in pixels; spread: standard deviation of the gain's logarithm; smooth: pixels over
    which the terrain varies.

    Columns: id, number, event, climate, array (.npy, float32 (3 dates * VV and VH, size, size), the earliest date first, NaN without data),
    mask (.npy, uint8 (size, size): 0 land, 1 permanent water, 2 flood, 3 without data), dem (.npy, float32 (size, size), metres).
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        events: PositiveInt = 12,
        side: PositiveInt = 8,
        size: PositiveInt = 64,
        looks: Positive = 4.0,
        spread: NonNegative = 0.25,
        smooth: Positive = 12.0,
    ) -> None:
        self.events, self.side, self.size, self.looks, self.spread, self.smooth = events, side, size, looks, spread, smooth

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        schema = pa.schema(
            [
                ("id", pa.string()), ("number", pa.int64()), ("event", pa.string()), ("climate", pa.string()),
                ("array", pa.large_binary()), ("mask", pa.large_binary()), ("dem", pa.large_binary()),
            ]
        )  # fmt: skip
        corpus = Corpus.write(context.folder / "corpus.lance", self._batches(schema), schema, metadata={"kind": "scene"})
        return {"rows": float(corpus.count())}

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for event in range(self.events):
            made = scene(event, self.side * self.size, self.looks, self.spread, self.smooth)
            rows = []
            for tile in range(self.side**2):
                top, left = (self.size * place for place in divmod(tile, self.side))
                part = (..., slice(top, top + self.size), slice(left, left + self.size))
                number = event * self.side**2 + tile
                rows.append(
                    {
                        "id": f"tile-{number:06d}", "number": number, "event": f"event-{event:02d}",
                        "climate": CLIMATES[event % len(CLIMATES)], "array": packed(made.values[part]),
                        "mask": packed(made.mask[part]), "dem": packed(made.elevation[part]),
                    }
                )  # fmt: skip
            yield pa.RecordBatch.from_pylist(rows, schema)


@dataclass(frozen=True)
class Scene:
    """values float32 (dates * channels, side, side), mask uint8 (side, side), elevation float32 (side, side)."""

    values: NDArray[np.float32]
    mask: NDArray[np.uint8]
    elevation: NDArray[np.float32]


def scene(event: int, side: int, looks: float, spread: float, smooth: float) -> Scene:
    """The scene of one event; a function of its arguments."""
    rng = np.random.default_rng([6, event])
    terrain = _rough(rng, side, smooth)
    wet, share = rng.uniform([0.2, 0.1], [0.4, 0.9])
    permanent, flooded = np.quantile(terrain, [wet * share, wet])
    mask = np.where(terrain < permanent, 1, np.where(terrain < flooded, 2, 0)).astype(np.uint8)
    gain = np.exp(spread * rng.normal(size=CHANNELS))
    offset = rng.uniform(0, 0.5, CHANNELS) * np.array(_WATER)
    texture = np.exp(0.25 * _rough(rng, side, 2.0))
    water = np.stack([mask == 1, mask == 1, (mask == 1) | (mask == 2)])[:, None]
    land, flat = (np.array(level)[None, :, None, None] for level in (_LAND, _WATER))
    mean = np.where(water, flat, land * texture) * gain[:, None, None] + offset[:, None, None]
    values = mean * rng.gamma(looks, 1 / looks, mean.shape)
    rows, columns = np.indices((side, side))
    missing = rows + columns < rng.uniform(0.1, 0.3) * side
    values[..., missing], mask[missing] = np.nan, INVALID
    return Scene(values.reshape(-1, side, side).astype(np.float32), mask, (100 + 30 * terrain).astype(np.float32))


def _rough(rng: np.random.Generator, side: int, sigma: float) -> NDArray[np.float64]:
    """Gaussian noise smoothed over `sigma` pixels, of variance 1."""
    field = gaussian_filter(rng.normal(size=(side, side)), sigma, mode="wrap")
    return field / field.std()  # type: ignore[no-any-return]
