"""What the model said before it began to forget: computed once for a whole set, kept on disk, never run again.

Notable: stored under the content of the weights and of the encoded examples, so runs, seeds and methods that share a
target model share it too; computed in eval mode without gradient, and the model is left in the mode it was in.
"""

import hashlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.backbones.fingerprint import fingerprint
from tilth.context import Context
from tilth.contracts import Batch, Examples, Noise
from tilth.unlearn import likelihood
from tilth.unlearn.likelihood import IGNORED, answer_log_probability, log_distribution
from tilth.unlearn.pairs import Ragged

_TOGETHER = 32  # examples per forward pass; logits exist for their answer tokens only


def log_probabilities(model: nn.Module, examples: Examples, context: Context) -> np.ndarray:
    """log p(answer | prompt) of every example under `model` as it is now, in nats, summed over the answer: float32 (examples,)."""

    def make(folder: Path) -> None:
        with evaluating(model) as device:
            found = [answer_log_probability(model, batch.to(device)).cpu() for batch in _told(examples, context)]
        np.save(folder / "values.npy", torch.cat(found).numpy())

    return np.load(context.cache("reference", _parts("log_probability", model, examples), make) / "values.npy")


def distributions(model: nn.Module, examples: Examples, context: Context, *, limit: float) -> Ragged | None:
    """Log-probabilities of every class at the answer positions of every example, memory-mapped: Ragged of float32 (n, classes).

    None if they would take more than `limit` bytes.
    """
    return per_position(model, examples, context, "distributions", log_distribution, _answer_lengths, limit=limit)


def per_position(
    model: nn.Module,
    examples: Examples,
    context: Context,
    what: str,
    compute: Callable[[nn.Module, Batch], Tensor],
    lengths: Callable[[Batch], np.ndarray],
    *,
    limit: float,
) -> Ragged | None:
    """compute(model, batch) -> (n, width) of every example, memory-mapped: Ragged of float32; None beyond `limit` bytes.

    what: names what is computed, all its settings with it. lengths(batch) -> how many of the n rows are each example's.
    """
    counts = np.concatenate([lengths(batch) for batch in batches_in_order(examples)])
    starts = np.concatenate([[0], counts.cumsum()])
    with evaluating(model) as device:
        width = compute(model, examples.batch(np.arange(1), Noise(0, np.arange(1))).to(device)).shape[-1]
    if 4 * int(starts[-1]) * width > limit:
        return None

    def make(folder: Path) -> None:
        values = np.lib.format.open_memmap(folder / "values.npy", "w+", np.float32, (int(starts[-1]), width))
        done = 0
        with evaluating(model) as device:
            for batch in _told(examples, context):
                found = compute(model, batch.to(device)).cpu().numpy()
                values[done : done + len(found)] = found
                done += len(found)
        values.flush()

    folder = context.cache("reference", _parts(what, model, examples), make)
    return Ragged(np.load(folder / "values.npy", mmap_mode="r"), starts)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that is not trained: eval mode, no gradients."""
    return deepcopy(model).eval().requires_grad_(False)


def examples_fingerprint(examples: Examples) -> str:
    """Of every number the model would see: data, template, tokeniser and length at once."""
    content = xxhash.xxh3_128()
    for batch in batches_in_order(examples):
        for name, tensor in _tensors(batch):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch, those of batches inside it too."""
    for name, value in sorted(batch.items()):
        if isinstance(value, Batch):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors(value))
        elif value is not None:
            yield name, value


def _parts(what: str, model: nn.Module, examples: Examples) -> dict[str, str]:
    code = hashlib.sha256(Path(likelihood.__file__).read_bytes()).hexdigest()
    return {"what": what, "model": fingerprint(model), "examples": examples_fingerprint(examples), "code": code}


def _answer_lengths(batch: Batch) -> np.ndarray:
    """Predicted answer tokens of each example: (batch,)."""
    labels = batch.labels.numpy()
    return np.ones(len(labels), dtype=np.int64) if labels.ndim == 1 else (labels[:, 1:] != IGNORED).sum(1)


def batches_in_order(examples: Examples) -> Iterator[Batch]:
    """All examples in order."""
    for start in range(0, len(examples), _TOGETHER):
        indices = np.arange(start, min(start + _TOGETHER, len(examples)))
        yield examples.batch(indices, Noise(0, indices))


def _told(examples: Examples, context: Context) -> Iterator[Batch]:
    """All examples in order, with progress."""
    context.progress.start("reference", len(examples), "examples")
    for number, batch in enumerate(batches_in_order(examples), start=1):
        yield batch
        context.progress.update(min(number * _TOGETHER, len(examples)))
    context.progress.end()
