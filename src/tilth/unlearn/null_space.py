"""Directions of key space that general text does not use: an edit that stays in them leaves general text alone.

Notable: kept are eigenvalues and eigenvectors of the key covariance, not a projector, so a threshold can be tried without
running the text again; they are stored under the content of model and text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.fingerprint import fingerprint
from tilth.batches.text.encoding import Encoder, digest, pad_token
from tilth.batches.text.ragged import padded
from tilth.context import Context
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.unlearn.subjects import keys_of
from tilth.unlearn.value_vectors import texts

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel

Rule = Literal["absolute", "energy", "share"]
_TOGETHER = 32  # texts of one forward pass


class Spectrum(NamedTuple):
    """Of C0 = E[k k^T], uncentred: eigenvalues (inner,) rising, and eigenvectors (inner, inner) as columns."""

    values: Tensor
    vectors: Tensor

    def free(self, rule: Rule, threshold: float) -> Tensor:
        """Basis (inner, directions) of the null space; the projector is P = basis basis^T.

        absolute: eigenvalues below `threshold` (AlphaEdit, arXiv 2410.02355, and ROCR), which depends on the model's scale;
        energy: as many of the smallest as hold at most `threshold` of the sum; share: the lowest `threshold` of all directions.
        """
        if rule == "absolute":
            count = int((self.values < threshold).sum())
        elif rule == "energy":
            held = self.values.clamp(min=0).double().cumsum(0)
            count = int((held <= threshold * held[-1]).sum())
        else:
            count = round(threshold * len(self.values))
        if not count:
            least = float(self.values[0])
            raise TilthError(
                f"no direction of key space is free under the rule '{rule}' at {threshold}: the least eigenvalue is {least:.2g}",
                hint="Raise 'threshold', or use the rule 'share'.",
            )
        return self.vectors[:, :count]


def spectra(
    text_model: TextModel, general: Corpus, layers: Sequence[int], limit: int, length: int, device: torch.device, context: Context
) -> dict[int, Spectrum]:
    """Block -> spectrum of the covariance of its keys over the tokens of the first `limit` texts of `general`."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    parts = {
        "model": fingerprint(text_model.model), "tokenizer": digest(text_model.tokenizer), "data": general.fingerprint,
        "layers": list(layers), "limit": limit, "length": length, "code": code,
    }  # fmt: skip

    def make(folder: Path) -> None:
        for layer, covariance in covariances(text_model, list(islice(texts(general), limit)), layers, length, device).items():
            values, vectors = torch.linalg.eigh(covariance)
            np.save(folder / f"values-{layer}.npy", values.cpu().numpy())
            np.save(folder / f"vectors-{layer}.npy", vectors.cpu().numpy())

    folder = context.cache("key-spectrum", parts, make)

    def read(name: str, layer: int) -> Tensor:
        return torch.from_numpy(np.load(folder / f"{name}-{layer}.npy")).to(device)

    return {layer: Spectrum(read("values", layer), read("vectors", layer)) for layer in layers}


@torch.no_grad()
def covariances(
    text_model: TextModel, said: Sequence[str], layers: Sequence[int], length: int, device: torch.device
) -> dict[int, Tensor]:
    """Block -> E[k k^T] over all tokens of the texts, cut at `length`: float32 (inner, inner)."""
    model, encoder = text_model.model, Encoder(text_model.tokenizer)
    sums, inside, count = dict[int, Tensor](), torch.empty(0), 0

    def add(layer: int, keys: Tensor) -> None:
        rows = keys[inside].float()
        sums[layer] = torch.addmm(sums[layer], rows.t(), rows) if layer in sums else rows.t() @ rows

    with keys_of(model, layers, add):
        for start in range(0, len(said), _TOGETHER):
            ids, lengths = encoder(said[start : start + _TOGETHER], special=True)
            rows = torch.from_numpy(padded(ids, lengths, int(lengths.max()), pad_token(text_model.tokenizer))).long()
            rows = rows[:, :length].to(device)
            inside = torch.arange(rows.shape[1], device=device) < torch.from_numpy(lengths).to(device)[:, None]
            count += int(np.minimum(lengths, length).sum())
            model(input_ids=rows, attention_mask=inside.long(), use_cache=False)
    if not count:
        raise TilthError("there is no general text to protect", hint="Give a retain set, or name a corpus under 'general'.")
    return {layer: total / count for layer, total in sums.items()}
