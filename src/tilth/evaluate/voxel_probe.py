"""What each layer of a frozen encoder knows of every voxel (or pixel): a linear map from tokens to the classes within their patch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import load
from tilth.backbones.patches import PatchEncoder
from tilth.batches.images.pictures import PixelRows, natural
from tilth.batches.patches.patchify import grid_of, patchify, unpatchify
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method, use
from tilth.corpus.arrays import unpacked
from tilth.errors import TilthError
from tilth.registry import PositiveInt

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus


@method("benchmark", "voxel_probe", systems=[12])
class VoxelProbe(Benchmark):
    """Segmentation by a linear probe on the tokens of each layer, learnt from few labelled inputs   (arXiv 2502.08347)

    Metrics: dice_last (of the encoder's normalised output), dice_layer_N for each of `layers` (blocks from 1), dice_layers (their
    mean), raw_dice (of the patch's own values): each the mean over classes but 0 of 2 |A and B| / (|A| + |B|), counted over all
    of `test`.

    train, test: rows with `array` and `mask` (.npy of whole numbers from 0, (*size)). iterations: of L-BFGS, see `probe`. Deviates from the paper, which fine-tunes a UNETR: this asks what the frozen layers hold.
    """

    def __init__(
        self,
        *,
        train: CorpusRef,
        test: CorpusRef,
        layers: list[PositiveInt],
        iterations: PositiveInt = 40,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "tiles"),
    ) -> None:
        self.train, self.test, self.layers, self.iterations, self.batches = train, test, layers, iterations, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        encoder: PatchEncoder = load(model).model  # type: ignore[assignment]
        if max(self.layers, default=0) > encoder.config.num_hidden_layers:
            raise TilthError(f"this encoder has {encoder.config.num_hidden_layers} blocks", where="voxel_probe.layers")
        sets = [context.corpus(name) for name in (self.train, self.test)]
        pixels = [self.batches.build().build(corpus, None, context) for corpus in sets]
        known, asked = (tokens_of(encoder, rows, self.layers) for rows in pixels)
        classes, truth = (masks_of(corpus, rows.sample.size) for corpus, rows in zip(sets, pixels, strict=True))
        count = 1 + int(max(classes.max(), truth.max()))
        patch = next(given["patch"] for given in encoder.config.inputs if len(given["size"]) == classes.ndim - 1)
        targets, grid = patchify(classes[:, None], patch).flatten(0, 1), grid_of(classes.shape[1:], patch)
        found = {}
        for name, tokens in known.items():
            labels = probe(tokens.flatten(0, 1), targets, count, asked[name].flatten(0, 1), self.iterations)
            found[name] = dice(unpatchify(labels.unflatten(0, (len(truth), -1)), grid, patch)[:, 0], truth, count)
        by_layer = [found[f"dice_layer_{layer}"] for layer in self.layers]
        return Scores({**found, **({"dice_layers": float(np.mean(by_layer))} if by_layer else {})})


def tokens_of(encoder: PatchEncoder, rows: PixelRows, layers: list[int], batch_size: int = 64) -> dict[str, Tensor]:
    """Metric -> tokens (inputs, patches, width), on the CPU; a class token is left out."""
    found: dict[str, list[Tensor]] = {}
    with evaluating(encoder) as device:
        for start in range(0, len(rows), batch_size):
            indices = np.arange(start, min(start + batch_size, len(rows)))
            pixels = natural(rows.batch(indices, Noise(0, indices)).pixel_values.to(device))
            features, embedding = encoder(pixels, layers=layers), encoder.embedding(pixels)
            aside = features.summary is not None
            one = {"dice_last": features.tokens, "raw_dice": patchify(embedding.standardised(pixels), embedding.patch)}
            one |= {f"dice_layer_{n}": layer[:, aside:] for n, layer in zip(layers, features.layers, strict=True)}
            for name, tokens in one.items():
                found.setdefault(name, []).append(tokens.float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def masks_of(corpus: Corpus, size: tuple[int, ...]) -> Tensor:
    """Classes of every voxel, int64 (rows, *size). TilthError for a mask of another size or not of whole numbers."""
    if "mask" not in corpus.columns:
        raise TilthError("the corpus has no column 'mask'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}.")
    masks: list[NDArray[Any]] = []
    table = corpus.table(["id", "mask"])
    for name, data in zip(table["id"].to_pylist(), table["mask"].to_pylist(), strict=True):
        mask = unpacked(data)
        if mask.shape != size or mask.dtype.kind not in "biu":
            raise TilthError(f"a mask of {mask.dtype} {mask.shape} for values of {size}", where=f"{corpus.uri}, row '{name}'")
        masks.append(mask.astype(np.int64))
    return torch.from_numpy(np.stack(masks))


def probe(x: Tensor, classes: Tensor, count: int, asked: Tensor, iterations: int) -> Tensor:
    """Classes (tokens, voxels) of `asked` by a linear map learnt from tokens x (tokens, width) and the classes of their voxels.

    Cross-entropy + (1 - mean soft Dice over classes from 1) of all voxels, by L-BFGS on standardised tokens from zero weights.
    """
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    known, voxels = (x - mean) / std, classes.shape[1]
    weight = torch.zeros(x.shape[1], voxels * count, requires_grad=True)
    bias = torch.zeros(voxels * count, requires_grad=True)
    truth = F.one_hot(classes, count).float()
    size = truth.sum((0, 1))
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = (known @ weight + bias).unflatten(1, (voxels, count))
        shares = logits.softmax(-1)
        overlap = 2 * (shares * truth).sum((0, 1)) / (shares.sum((0, 1)) + size + 1e-6)
        total: Tensor = F.cross_entropy(logits.flatten(0, 1), classes.flatten()) + 1 - overlap[1:].mean()
        total = total + 1e-4 * weight.square().sum() / voxels
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        return ((asked - mean) / std @ weight + bias).unflatten(1, (voxels, count)).argmax(-1)


def dice(labels: Tensor, truth: Tensor, classes: int) -> float:
    """Mean over classes from 1 of 2 |A and B| / (|A| + |B|), counted over all voxels; a class that is nowhere counts 1."""
    scores = []
    for label in range(1, classes):
        ours, theirs = labels == label, truth == label
        total = int(ours.sum() + theirs.sum())
        scores.append(2 * int((ours & theirs).sum()) / total if total else 1.0)
    return float(np.mean(scores)) if scores else 1.0
