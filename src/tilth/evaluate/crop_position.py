"""Whether an encoder tells where a crop of an unseen volume lies, and whether it keeps different places apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch import Tensor, nn

from tilth.backbones.evaluating import computing_device
from tilth.backbones.folder import load
from tilth.batches.images.pictures import natural
from tilth.batches.patches.crops import CropGrid
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method, use
from tilth.evaluate.upsampling_error import trained
from tilth.pretrain.images.voco import VoCo, cosines, embedding
from tilth.registry import PositiveInt

if TYPE_CHECKING:
    from tilth.context import Context


@method("benchmark", "crop_position", systems=[9])
class CropPosition(Benchmark):
    """Random crops of held-out volumes are compared with the base crops of the same volume and of the next   (arXiv 2410.09890)

    Metrics: position_accuracy, share of random crops for which the base crop with the greatest cosine is one of those they share
    most with; other_position_accuracy, the same with the next volume's base crops; base_cosine, mean cosine between different base
    crops of a volume. Of the embeddings, standardised over all crops as the method's head does it. Where the model was made by
    `voco`, head_position_accuracy and so on are the same of its heads, which its last checkpoint holds: student's random crops
    against teacher's base crops, and cosines between student's base crops.

    crop, grid, random_crops, levels: as in 'voco'. volumes: how many go through the heads together. Crops are not augmented.
    """

    def __init__(
        self,
        *,
        test: CorpusRef,
        crop: PositiveInt | list[PositiveInt] = 64,
        grid: PositiveInt | list[PositiveInt] = 3,
        random_crops: PositiveInt = 2,
        levels: list[PositiveInt] | None = None,
        volumes: PositiveInt = 16,
        batches: Annotated[Configured, Kind("batches")] = use("batches", "tiles"),
    ) -> None:
        self.test, self.crop, self.grid, self.random_crops, self.levels = test, crop, grid, random_crops, levels
        self.volumes, self.batches = volumes, batches

    @torch.inference_mode()
    def __call__(self, model: Path, context: Context) -> Scores:
        text_model = load(model)
        history = text_model.about.get("history") or [{}]
        voco = trained(model) if "voco" in history[-1].get("stage", {}).get("objective", {}) else None
        whole: nn.Module = voco if isinstance(voco, VoCo) else text_model.model
        whole.to(computing_device())
        encoder = voco.model if isinstance(voco, VoCo) else text_model.model
        examples = self.batches.build().build(context.corpus(self.test), None, context)
        crops = CropGrid.of(self.crop, self.grid, len(examples.sample.size))
        vectors, labels, asked = [], [], []
        for start in range(0, len(examples), self.volumes):
            indices = np.arange(start, min(start + self.volumes, len(examples)))
            batch = examples.batch(indices, Noise(context.seed, indices)).to(encoder.device)
            found, shares = crops(natural(batch.pixel_values), batch["keys"], self.random_crops)
            embedded = embedding(encoder, found.flatten(0, 1), self.levels)
            vectors.append(embedded.float().cpu().unflatten(0, found.shape[:2]))
            labels.append(shares.cpu())
            if isinstance(voco, VoCo):
                asked.append([head(embedded).cpu().unflatten(0, found.shape[:2]) for head in (voco.head, voco.teacher)])
        raw, y = torch.cat(vectors), torch.cat(labels)
        raw = (raw - raw.mean((0, 1))) / raw.std((0, 1)).clamp(min=1e-6)
        metrics = positions(raw, raw, y)
        if asked:
            student, teacher = (torch.cat(parts) for parts in zip(*asked, strict=True))
            metrics |= {f"head_{name}": value for name, value in positions(student, teacher, y).items()}
        return Scores(metrics)


def positions(asked: Tensor, known: Tensor, labels: Tensor) -> dict[str, float]:
    """The metrics. asked, known (volumes, bases + random, width): where random crops, where base crops are taken from; labels
    (volumes, random, bases)."""
    bases = labels.shape[2]
    crops, own = asked[:, bases:], known[:, :bases]
    apart = cosines(asked[:, :bases], asked[:, :bases])[:, ~torch.eye(bases, dtype=torch.bool)]
    return {
        "position_accuracy": located(crops, own, labels),
        "other_position_accuracy": located(crops, own.roll(-1, 0), labels),
        "base_cosine": float(apart.mean()),
    }


def located(crops: Tensor, bases: Tensor, labels: Tensor) -> float:
    """Share of crops whose nearest base crop is one of those they share most with."""
    nearest = cosines(crops, bases).argmax(2, keepdim=True)
    return float((labels.gather(2, nearest)[..., 0] == labels.amax(2)).float().mean())
