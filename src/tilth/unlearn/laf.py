"""Label-agnostic forgetting: take images out of a classifier through its embeddings alone.

Notable: no label is ever read; two optimisers take turns with moments of their own, which one loop with one optimiser
cannot honestly be, so this is an edit that trains by itself; the head never moves.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tilth.backbones.evaluating import computing_device
from tilth.backbones.heads import embed, embed_all, extractor_parameters, freeze_batch_norm
from tilth.batches.order import Order
from tilth.contracts import Edit, Noise, method
from tilth.errors import TilthError
from tilth.registry import NonNegative, Positive, PositiveInt
from tilth.training.settings import Budget
from tilth.unlearn.embedding_vae import Decoder, EmbeddingVAE, fitted_vae
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.reference import frozen_copy
from tilth.unlearn.task import Task


def bounded(error: Tensor) -> Tensor:
    """phi(s) = exp(s / (s + 1)): 1 at 0, towards e for large s, so that a negative term cannot diverge."""
    return torch.exp(1 - 1 / (1 + error))


def extractor_loss(remaining: Tensor, forgotten: Tensor) -> Tensor:
    """L_UE = sum phi(remaining) - sum phi(forgotten), of reconstruction errors (n_r,) and (n_f,)   (arXiv 2404.00506, eq. 5)"""
    return bounded(remaining).sum() - bounded(forgotten).sum()


def alignment_loss(
    remaining: Tensor, remaining_before: Tensor, forgotten: Tensor, forgotten_before: Tensor, temperature: float
) -> Tensor:
    """L_RA = sum_i [a_i - log sum_j exp(b_j / temperature)]   (arXiv 2404.00506, eq. 7)

    a_i, b_j = 1 - cosine of an embedding and the original model's, of remaining (n_r, m) and of forgotten images (n_f, m).
    """
    away = 1 - cosine_similarity(forgotten, forgotten_before, dim=1)
    kept = 1 - cosine_similarity(remaining, remaining_before, dim=1)
    return (kept - torch.logsumexp(away / temperature, 0)).sum()


@method("unlearn", "laf", systems=[19])
class LAF(Edit):
    """Alternate a step on L_UE and a step on L_RA, each with its own Adam over the extractor   (arXiv 2404.00506, algorithm 1)

    L_UE asks two VAEs of the original embeddings, h_r of the remaining and h_f of the forgotten images: embeddings of
    remaining images stay where h_r reconstructs them, those of forgotten images leave what h_f knows.
    L_RA holds remaining embeddings to the original ones and pushes forgotten ones away from theirs.

    extractor_lr, alignment_lr: Adam's rate on L_UE and on L_RA; 0 leaves the term out. temperature: of forgotten distances.
    latent: dimensions of the VAEs, trained for `vae_epochs`. decoder: as in EmbeddingVAE.
    remaining: h_r learns 'retain' or 'all' images, as published; 'all' includes what shall be forgotten.
    batch_norm: 'frozen' keeps running statistics from seeing forgotten images, 'train' is as published.
    Of `training` only batch_size is used; the budget is in steps, epochs (of the forget set) or samples. Each forgotten
    image is served with one remaining image drawn at random, so neither set ends the other early.
    """

    def __init__(
        self,
        *,
        extractor_lr: NonNegative = 5e-5,
        alignment_lr: NonNegative = 1e-4,
        temperature: Positive = 20.0,
        latent: PositiveInt = 8,
        vae_epochs: Positive = 10,
        decoder: Decoder = "sigmoid",
        remaining: Literal["retain", "all"] = "retain",
        batch_norm: Literal["frozen", "train"] = "frozen",
    ) -> None:
        if extractor_lr == 0 and alignment_lr == 0:
            raise TilthError("without both of its terms 'laf' does nothing", hint="Raise extractor_lr or alignment_lr.")
        self.extractor_lr, self.alignment_lr, self.temperature = extractor_lr, alignment_lr, temperature
        self.latent, self.vae_epochs, self.decoder = latent, vae_epochs, decoder
        self.remaining, self.batch_norm = remaining, batch_norm

    def __call__(self, task: Task) -> dict[str, float]:
        """Metrics: steps, and both losses as means per image over the last tenth of them."""
        task.retained()
        assert task.staying is not None
        model, context, device = task.text_model.model, task.context, computing_device()
        remaining, forgotten = (embed_all(model, examples)[0] for examples in (task.staying, task.going))
        known = np.concatenate([remaining, forgotten]) if self.remaining == "all" else remaining
        vaes = [
            self.vae(values, name, task).to(device) for values, name in ((known, "vae-remaining"), (forgotten, "vae-forgotten"))
        ]
        losses = self.unlearn(model, PairedExamples(task.going, task.staying), vaes[0], vaes[1], task)
        context.exhibit(
            "curves", "Losses per step", x="step", y="loss per image", log=False,
            series={name: [[step, value] for step, value in enumerate(values)] for name, values in losses.items()},
        )  # fmt: skip
        means = {
            f"{name}_loss": float(np.mean(values[-max(1, len(values) // 10) :])) for name, values in losses.items() if values
        }
        return {"steps": float(max(map(len, losses.values()))), **means}

    def vae(self, embeddings: np.ndarray, name: str, task: Task) -> EmbeddingVAE:
        return fitted_vae(
            embeddings, latent=self.latent, decoder=self.decoder, epochs=self.vae_epochs,
            folder=task.context.folder / name, context=task.context,
        )  # fmt: skip

    def unlearn(
        self, model: nn.Module, examples: PairedExamples, of_remaining: EmbeddingVAE, of_forgotten: EmbeddingVAE, task: Task
    ) -> dict[str, list[float]]:
        """Train the extractor in place; gives both losses per image of every step."""
        context, device, size = task.context, computing_device(), task.training.batch_size
        before, order = frozen_copy(model), Order(len(examples), context.seed)
        extractor, alignment = (
            torch.optim.Adam(extractor_parameters(model), lr=lr) if lr > 0 else None
            for lr in (self.extractor_lr, self.alignment_lr)
        )
        losses: dict[str, list[Tensor]] = {"extractor": [], "alignment": []}
        steps = steps_of(task.budget, len(examples), size)
        torch.manual_seed(context.seed)
        model.train()
        if self.batch_norm == "frozen":
            freeze_batch_norm(model)
        context.progress.start("laf", steps, "steps")
        for step in range(steps):
            positions = np.arange(step * size, (step + 1) * size)
            batch = examples.batch(order.indices(step * size, (step + 1) * size), Noise(context.seed, positions)).to(device)
            remaining, forgotten = batch.retain.pixel_values, batch.forget.pixel_values
            if extractor is not None:
                errors = (of_remaining(embed(model, remaining)[0])[0], of_forgotten(embed(model, forgotten)[0])[0])
                losses["extractor"].append(descend(extractor, extractor_loss(*errors)) / size)
            if alignment is not None:
                with torch.no_grad():
                    was = [embed(before, pixels)[0] for pixels in (remaining, forgotten)]
                now = [embed(model, pixels)[0] for pixels in (remaining, forgotten)]
                loss = alignment_loss(now[0], was[0], now[1], was[1], self.temperature)
                losses["alignment"].append(descend(alignment, loss) / size)
            context.progress.update(step + 1)
        context.progress.end()
        model.eval()
        return {name: torch.stack(values).tolist() if values else [] for name, values in losses.items()}


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step; gives the loss, still on the device."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


def steps_of(budget: Budget, examples: int, batch_size: int) -> int:
    """The budget in steps of `batch_size`. Raises TilthError for budgets that need a clock or a count of operations."""
    if budget.steps is not None:
        return budget.steps
    samples = budget.samples if budget.samples is not None else budget.epochs and budget.epochs * examples
    if samples is None:
        raise TilthError("this method counts in steps, epochs or samples", hint="Write e.g. budget: {epochs: 20}.")
    return math.ceil(samples / batch_size)
