"""Generic labels: what a model would have predicted had it never read a text, from two models and a translation of the text.

Notable: labels are made at the answer positions of the examples, block by block, and only their ids (or the likeliest few with
their probabilities) are kept; logits of one bounded batch exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.context import Context
from tilth.contracts import Batch, Examples, Noise
from tilth.errors import TilthError
from tilth.unlearn.likelihood import IGNORED, answers
from tilth.unlearn.pairs import Ragged
from tilth.unlearn.translation import Translation, Translator

ReluReference = Literal["original", "translated"]
_TOGETHER = 8  # blocks per forward pass, fewer where their logits would take more than
_LOGITS = 2**26  # numbers


def generic_logits(translated: Tensor, baseline: Tensor, reinforced: Tensor, alpha: float, relu_ref: ReluReference) -> Tensor:
    """translated - alpha * relu(reinforced - reference), all (n, vocabulary)   (arXiv 2310.02238, section 2)

    reference: the baseline on the original text or on its translation.
    """
    reference = baseline if relu_ref == "original" else translated
    return translated - alpha * (reinforced - reference).clamp(min=0)


def generic_labels(
    baseline: nn.Module,
    reinforced: nn.Module,
    examples: Examples,
    translator: Translator,
    context: Context,
    *,
    alpha: float,
    relu_ref: ReluReference,
    lowered: float,
    limit: int,
    top: int | None,
) -> dict[str, Ragged]:
    """Of every example, one entry for each answer position, -100 where there is no label: `generic` (n,), int64.

    top: labels are soft: `generic` (n, top), the likeliest ids, and `generic_probability` (n, top), what is left of 1 being that of
    all other ids together.
    lowered: nats by which the beginnings of counterparts of terms already met are lowered. limit: tokens of the models' context.
    """
    labels: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    context.progress.start("generic labels", len(examples), "examples")
    with evaluating(baseline) as device, evaluating(reinforced):
        done = 0
        for batch in _batches(examples, _vocabulary(baseline)):
            if batch.get("attention_mask") is not None and batch.attention_mask.ndim > 2:
                raise TilthError(
                    "rows of several documents that do not see each other cannot be translated", hint="Use `packing: chunk`."
                )
            translations = [translator(ids) for ids in _rows(batch)]
            logits, usable = _generic(
                baseline, reinforced, batch, translations, device, alpha=alpha, relu_ref=relu_ref, lowered=lowered, limit=limit
            )
            if top is None:
                found = logits.argmax(-1)
            else:
                best, found = logits.topk(min(top, logits.shape[-1]), -1)
                probabilities.append((best - logits.logsumexp(-1, keepdim=True)).exp().cpu().numpy())
                usable = usable[:, None]
            labels.append(torch.where(usable, found, IGNORED).cpu().numpy())
            counts.append((batch.labels[:, 1:] != IGNORED).sum(1).numpy())
            done += len(batch.labels)
            context.progress.update(done)
    context.progress.end()
    starts = np.concatenate([[0], np.concatenate(counts).cumsum()])
    made = {"generic": Ragged(np.concatenate(labels), starts)}
    return made | ({"generic_probability": Ragged(np.concatenate(probabilities), starts)} if top is not None else {})


def _generic(
    baseline: nn.Module, reinforced: nn.Module, batch: Batch, translations: list[Translation], device: torch.device,
    *, alpha: float, relu_ref: ReluReference, lowered: float, limit: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Generic logits (n, vocabulary) at the answer positions of a batch, and which of them make a label (n,)."""
    row, column = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    place = column + 1  # of the token that is predicted
    width = min(limit, max(len(found.ids) for found in translations))
    aligned, repeated = torch.zeros(batch.labels.shape, dtype=torch.long), torch.zeros(batch.labels.shape, dtype=torch.bool)
    ids, mask = (torch.zeros(len(translations), width, dtype=torch.long) for _ in range(2))
    for number, found in enumerate(translations):
        size = min(width, len(found.ids))
        aligned[number, : len(found.aligned)] = torch.from_numpy(found.aligned)
        repeated[number, : len(found.repeated)] = torch.from_numpy(found.repeated)
        ids[number, :size], mask[number, :size] = torch.from_numpy(found.ids[:size]), 1
    there = aligned[row, place]
    predictable = (there > 0) & (there < width)
    there = there.clamp(1, width - 1)
    labels = torch.full_like(ids, IGNORED)
    labels[row, there] = ids[row, there]
    translated, _, where = answers(baseline, Batch(input_ids=ids, labels=labels, attention_mask=mask).to(device))
    number_at = where.flatten().cumsum(0).view_as(where) - 1
    translated = translated[number_at[row.to(device), (there - 1).to(device)]]
    original = batch.to(device)
    logits = generic_logits(translated, answers(baseline, original).logits, answers(reinforced, original).logits, alpha, relu_ref)
    for number, found in enumerate(translations):
        for begin, tokens in found.seen:
            behind = ((row == number) & (place >= begin)).nonzero()[:, 0].to(device)
            logits[behind[:, None], torch.tensor(tokens, dtype=torch.long, device=device)] -= lowered
    return logits, (predictable & ~repeated[row, place]).to(device)


def _rows(batch: Batch) -> Iterator[np.ndarray]:
    """The ids of each row without its padding."""
    mask = batch.get("attention_mask")
    inside = (batch.labels != IGNORED) if mask is None else mask.bool()
    columns = torch.arange(inside.shape[1])
    for ids, size in zip(batch.input_ids, ((columns + 1) * inside).amax(1).tolist(), strict=True):
        yield ids[:size].numpy().astype(np.int64)


def _batches(examples: Examples, vocabulary: int) -> Iterator[Batch]:
    """All examples in order."""
    length = examples.batch(np.arange(1), Noise(0, np.arange(1))).labels.shape[1]
    together = max(1, min(_TOGETHER, _LOGITS // (vocabulary * length)))
    for start in range(0, len(examples), together):
        indices = np.arange(start, min(start + together, len(examples)))
        yield examples.batch(indices, Noise(0, indices))


def _vocabulary(model: nn.Module) -> int:
    return int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]
