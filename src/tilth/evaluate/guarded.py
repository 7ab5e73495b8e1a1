"""Guarded models, generating and scored: which prompts the guard concerns, and what it makes of them.

Notable: flagged prompts and the others never share a batch, so what the guard leaves alone is the bare model's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from tilth.contracts import Batch
from tilth.unlearn.likelihood import Answers, answers

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel
    from tilth.contracts import Guard

Predict = Callable[[nn.Module, Batch], Answers]


def bare(text_model: TextModel) -> TextModel:
    """The same model without its guard."""
    return replace(text_model, guard=None)


def flagged(text_model: TextModel, prompts: Sequence[str]) -> np.ndarray:
    """Which prompts the model's guard acts on: bool (prompts,); none without a guard."""
    if text_model.guard is None or not len(prompts):
        return np.zeros(len(prompts), dtype=bool)
    return np.asarray(text_model.guard.flags(bare(text_model), prompts), dtype=bool)


def guarded_answers(text_model: TextModel, guard: Guard) -> Predict:
    """What the guard lets the model predict at the answer tokens of a batch of flagged prompts."""
    without = bare(text_model)

    def predict(model: nn.Module, batch: Batch) -> Answers:
        with guard.scoring(without, batch):
            logits, targets, where = answers(model, batch)
        return Answers(guard.adjust(logits, without, batch, where), targets, where)

    return predict


def continued(
    text_model: TextModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    generate: Callable[[TextModel, list[str], bool], list[str]],
) -> list[str]:
    """Continuations of all prompts; generate(bare model, prompts, guarded): the model's own decoding of some of them."""
    guard, texts = text_model.guard, np.empty(len(prompts), dtype=object)
    assert guard is not None
    acts = flagged(text_model, prompts)
    for rows, concerned in ((np.flatnonzero(~acts), False), (np.flatnonzero(acts), True)):
        some, without = [prompts[row] for row in rows.tolist()], bare(text_model)
        if not some:
            continue
        if not concerned:
            texts[rows] = generate(without, some, False)
        elif guard.refusal is not None:
            texts[rows] = guard.refusal
        else:
            own = guard.decode(without, some, max_new_tokens)
            if own is None:
                with guard.acting(without):
                    own = generate(without, some, True)
            texts[rows] = own
    return list(texts)
