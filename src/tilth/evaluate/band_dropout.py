"""What is left of an encoder of many bands where some of them are missing: a probe of vegetation, learnt with all bands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilth.adapt.linear_probe import LinearProbe
from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import load
from tilth.backbones.patches import PatchEncoder
from tilth.batches.draws import uniform
from tilth.batches.images.pictures import PixelRows, natural
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method, use
from tilth.errors import TilthError
from tilth.evaluate.image_probe import few
from tilth.pretrain.images.upsampling import pyramid
from tilth.registry import NonNegativeInt, Positive, PositiveInt

if TYPE_CHECKING:
    from tilth.context import Context


@method("benchmark", "band_dropout", systems=[29])
class BandDropout(Benchmark):
    """Metrics: accuracy, of a linear probe on `test`; dropped_accuracy, with `dropped` bands of every tile set to the mean of the
    encoder's data; drop, the difference.

    Classes are thirds of the tiles by their mean normalised difference of the bands `near_infrared` and `red` (NDVI), at the thirds
    of `train`. red, near_infrared: numbers of bands, from 0; those of Sentinel-2 with 13 bands by default. per_class: labelled tiles
    of each class, drawn with the seed. C: of the probe. Which bands are missing is drawn for each tile with the seed. Tiles are
    reduced as the encoder's training reduced them. batches: in the values' own scale. TilthError for a band that is not there.
    """

    def __init__(
        self,
        *,
        train: CorpusRef,
        test: CorpusRef,
        dropped: PositiveInt = 4,
        red: NonNegativeInt = 3,
        near_infrared: NonNegativeInt = 7,
        per_class: PositiveInt | None = 20,
        C: Positive = 1.0,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "tiles"),
    ) -> None:
        self.train, self.test, self.dropped, self.bands = train, test, dropped, (red, near_infrared)
        self.per_class, self.C, self.batches = per_class, C, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        encoder: PatchEncoder = load(model).model  # type: ignore[assignment]
        train, test = (self.batches.build().build(context.corpus(name), None, context) for name in (self.train, self.test))
        if max(*self.bands, self.dropped) >= train.sample.channels:
            hint = f"They have {train.sample.channels} bands, from 0."
            raise TilthError("the tiles have not as many bands as are asked for", where="band_dropout", hint=hint)
        known, asked = (self.vegetation(rows) for rows in (train, test))
        borders = np.quantile(known, [1 / 3, 2 / 3])
        labels, truth = np.digitize(known, borders), np.digitize(asked, borders)
        chosen = few(labels, self.per_class, context.seed)
        probe = LinearProbe(C=self.C).fit(features(encoder, train, context.seed)[chosen], labels[chosen])
        whole, part = (
            float((probe.predict(features(encoder, test, context.seed, dropped)) == truth).mean())
            for dropped in (0, self.dropped)
        )
        return Scores({"accuracy": whole, "dropped_accuracy": part, "drop": whole - part})

    def vegetation(self, rows: PixelRows) -> NDArray[np.float64]:
        """Mean normalised difference of each tile, float64 (tiles,)."""
        red, infrared = (rows.pixels[:, band].reshape(len(rows), -1).astype(np.float64) for band in self.bands)
        total = red + infrared
        return np.divide(infrared - red, total, out=np.zeros_like(total), where=total != 0).mean(1)


def features(encoder: PatchEncoder, rows: PixelRows, seed: int, dropped: int = 0, batch_size: int = 256) -> NDArray[np.float32]:
    """Pooled features (tiles, width), with `dropped` bands of each tile at their mean."""
    found = []
    with evaluating(encoder) as device:
        for start in range(0, len(rows), batch_size):
            indices = np.arange(start, min(start + batch_size, len(rows)))
            batch = rows.batch(indices, Noise(seed, indices)).to(device)
            pixels = natural(batch.pixel_values)
            pixels = without(pixels, batch["keys"], dropped, encoder.embedding(pixels).mean)
            reduced = encoder.config.inputs[0].get("reduced", 1).bit_length() - 1
            found.append(encoder(pyramid(pixels, reduced)[0]).pooled.float().cpu().numpy())
    return np.concatenate(found)


def without(pixels: Tensor, keys: Tensor, dropped: int, mean: Tensor) -> Tensor:
    """`dropped` bands of every example, drawn from its key, at `mean` (bands, 1, 1)."""
    missing = uniform(keys, "bands", pixels.shape[1]).argsort(1).argsort(1) < dropped
    return torch.where(missing[:, :, None, None], mean, pixels)
