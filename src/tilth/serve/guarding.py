"""A guard is tried before the door opens: what cannot be guarded is not served."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import load
from tilth.batches.text.encoding import end_token, pad_token
from tilth.errors import TilthError
from tilth.evaluate.guarded import bare, flagged
from tilth.serve.answer import Answer
from tilth.serve.decoding import Decoding, Row
from tilth.serve.prompts import Prompt, Prompter
from tilth.serve.sampling import Sampling

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel
    from tilth.contracts import Guard


def load_to_serve(reference: str) -> TextModel:
    """The model, its guard with it and tried. Raises TilthError when the guard cannot be loaded or cannot act here."""
    try:
        text_model = load(reference)
    except TilthError:
        raise
    except Exception as error:
        raise TilthError(
            f"the model cannot be loaded: {_short(error)}",
            where=reference,
            hint="A guarded model is not served without its guard.",
        ) from error
    if text_model.guard is not None:
        _try(text_model, text_model.guard, reference)
    return text_model


def generates(text_model: TextModel) -> bool:
    """Whether the model goes on from a prompt (a causal language model), or can only embed."""
    model: Any = text_model.model
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def _try(text_model: TextModel, guard: Guard, reference: str) -> None:
    """Ask the guard everything that requests will ask it, once, and look whether the model is afterwards as it was."""
    without, prompter = bare(text_model), Prompter(text_model)
    if not generates(text_model):
        raise TilthError("the model has a guard, and guards act on causal language models", where=reference)
    try:
        with evaluating(text_model.model):
            prompt = prompter.completion("a")
            flagged(text_model, [prompt.text])
            before = _logits(text_model, prompt)
            if guard.refusal is None and guard.decode(without, [prompt.text], 2) is None:
                _two_tokens(text_model, prompt, guard.acting(without), guard.processors(without))
            after = _logits(text_model, prompt)
    except Exception as error:
        raise TilthError(
            f"the model's guard cannot be applied: {_short(error)}",
            where=reference,
            hint="Guard the model again. It is not served without its guard.",
        ) from error
    if not torch.equal(before, after):
        raise TilthError(
            "the model's guard leaves the model changed after it has acted, so unconcerned prompts would be touched",
            where=reference,
        )


def _two_tokens(text_model: TextModel, prompt: Prompt, acting: AbstractContextManager[None], processors: list[Any]) -> None:
    tokenizer = text_model.tokenizer
    row = Row(0, prompt, 2, Sampling(), Answer(lambda ids: ""), lambda piece: None)
    decoding = Decoding(text_model.model, [row], end=end_token(tokenizer), pad=pad_token(tokenizer), count=lambda tokens: None)
    with acting:
        decoding.advance(2)


def _logits(text_model: TextModel, prompt: Prompt) -> Tensor:
    model: Any = text_model.model
    logits: Tensor = model(torch.tensor([prompt.ids], device=model.device)).logits
    return logits.clone()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
