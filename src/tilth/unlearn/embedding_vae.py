"""A variational autoencoder of a frozen network's embeddings: how a set of images lies in embedding space, without labels.

Notable: trained by the one loop like any other objective; afterwards it is frozen and asked only how well it
reconstructs, with gradients passing through it to whoever made the embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilth.context import Context
from tilth.contracts import Batch, Loss, Noise, Objective, use
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training

Decoder = Literal["sigmoid", "linear"]
_KL = 0.025  # weight of the divergence (arXiv 2404.00506, code)


class EmbeddingVAE(nn.Module):
    """m - m/2 - m/8 - (mean, log variance) of q dimensions and back, with ReLU   (arXiv 2404.00506, section 3.2 and code: 256-128-32)

    decoder: 'sigmoid' at the output, as published, although embeddings are not bounded; 'linear' without, on embeddings
    standardised by `mean` and `std` (m,), which reconstructs them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, latent: int, decoder: Decoder, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        inner, narrow = max(width // 2, latent), max(width // 8, latent)
        self.encoder = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, narrow), nn.ReLU())
        self.moments = nn.Linear(narrow, 2 * latent)
        layers = [nn.Linear(latent, narrow), nn.ReLU(), nn.Linear(narrow, inner), nn.ReLU(), nn.Linear(inner, width)]
        self.decoder = nn.Sequential(*layers, *([nn.Sigmoid()] if decoder == "sigmoid" else []))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error of reconstructing each embedding (n,), through one draw of the latent, and its mean and log variance (n, q)."""
        inputs = (embeddings - self.mean) / self.std
        mean, log_variance = self.moments(self.encoder(inputs)).chunk(2, -1)
        latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return (self.decoder(latent) - inputs).square().sum(-1), mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over the latent: (n,)."""
    return -0.5 * (log_variance + 1 - mean.square() - log_variance.exp()).sum(-1)


class Reconstruction(Objective):
    """L = mean over embeddings of squared error + 0.025 * KL.   batch.inputs: embeddings (batch, m)"""

    def forward(self, batch: Batch) -> Loss:
        error, mean, log_variance = self.model(batch.inputs)
        kl = divergence(mean, log_variance)
        return Loss((error + _KL * kl).mean(), count=len(error), error=error.mean(), kl=kl.mean())


class Vectors:
    """Examples that are the rows of an array (n, m)."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        return Batch(tokens=len(indices), samples=len(indices), inputs=torch.from_numpy(self.values[indices]))

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return [np.array([index]) for index in indices]


def fitted_vae(
    embeddings: NDArray[np.float32], *, latent: int, decoder: Decoder, epochs: float, folder: Path, context: Context
) -> EmbeddingVAE:
    """A frozen VAE of the embeddings (n, m): Adam 1e-3, batches of 32 (arXiv 2404.00506, code)."""
    torch.manual_seed(context.seed)
    width = embeddings.shape[1]
    mean, std = torch.zeros(width), torch.ones(width)
    if decoder == "linear":
        mean, std = torch.from_numpy(embeddings.mean(0)), torch.from_numpy(embeddings.std(0)).clamp(min=1e-6)
    vae = EmbeddingVAE(width, latent, decoder, mean, std)
    adam = use("optimiser", "adamw", weight_decay=0.0, betas=(0.9, 0.999))
    constant = use("schedule", "constant")
    fit(
        Reconstruction(vae), Vectors(embeddings),
        training=Training(lr=1e-3, batch_size=32, optimiser=adam, schedule=constant, clip=None, compile=False, parallel="ddp"),
        budget=Budget(epochs=epochs), folder=folder, seed=context.seed, progress=context.progress,
    )  # fmt: skip
    return vae.requires_grad_(False)
