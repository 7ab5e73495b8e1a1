"""A batch of continuations, decoded a few tokens at a time; each row reads along, ends by itself and then leaves.

Notable: transformers' own generate decodes, as in `evaluate.generate`; what differs from row to row (sampling, limits, stop
strings, a reader who has gone) is a LogitsProcessor behind all others and a StoppingCriteria.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from tilth.evaluate.generate import roomy_cache
from tilth.serve.answer import Answer
from tilth.serve.errors import RequestError
from tilth.serve.prompts import Prompt
from tilth.serve.sampling import Sampler, Sampling


@dataclass(frozen=True)
class Piece:
    """Text that row `index` of a request goes on with; finish: 'stop' or 'length' with its last one; error: instead of it."""

    index: int
    text: str
    finish: str | None = None
    error: RequestError | None = None


@dataclass(eq=False)
class Row:
    """One continuation somebody waits for. limit: its longest length in tokens. receive: called for each piece."""

    index: int
    prompt: Prompt
    limit: int
    sampling: Sampling
    answer: Answer
    receive: Callable[[Piece], None]
    cancelled: bool = False  # nobody waits any longer; set from other threads
    finished: bool = False
    uniforms: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.uniforms = self.sampling.uniforms(self.limit)

    def take(self, token: int, end: int) -> bool:
        """The model's next token; whether the row has ended."""
        if self.finished:
            return True
        if self.cancelled or token == end:
            return self._finish("stop")
        text = self.answer.push(token)
        if self.answer.stopped:
            return self._finish("stop", text)
        if len(self.answer.ids) >= self.limit:
            return self._finish("length", text)
        if text:
            self.receive(Piece(self.index, text))
        return False

    def say(self, texts: Iterable[str]) -> None:
        """A whole continuation that the model did not make token by token."""
        self.answer.piecewise = True
        for text in texts:
            if self.answer.stopped:
                break
            if certain := self.answer.add(text):
                self.receive(Piece(self.index, certain))
        self._finish("stop")

    def fail(self, error: RequestError) -> None:
        if not self.finished:
            self.finished = True
            self.receive(Piece(self.index, "", error=error))

    def _finish(self, reason: str, text: str = "") -> bool:
        self.finished = True
        text += self.answer.end()
        # A stop string may have been completed only by the last characters.
        self.receive(Piece(self.index, text, "stop" if self.answer.stopped else reason))
        return True


class Decoding:
    """Rows being generated; `rows` shrinks as they end. count: told how many tokens were made.

    processors: LogitsProcessors of this batch; they may keep states of rows, so with them no row leaves before all have ended.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        end: int,
        pad: int,
        count: Callable[[int], None],
        processors: Sequence[Any] = (),
    ) -> None:
        self.model, self.rows, self.end, self.pad, self.count = model, list(rows), end, pad, count
        self.processors = processors
        width = max(len(row.prompt.ids) for row in rows)
        padded = [[pad] * (width - len(row.prompt.ids)) + row.prompt.ids for row in rows]
        self.ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(row.prompt.ids) for row in rows], device=model.device)
        self.mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
        self.cache = roomy_cache(model)

    @property
    def going(self) -> list[Row]:
        """Rows that have not ended."""
        return [row for row in self.rows if not row.finished]

    def advance(self, tokens: int) -> None:
        """At most `tokens` more for every row, and no more than all have room for."""
        rows, before = self.rows, self.ids.shape[1]
        tokens = min(tokens, min(row.limit - len(row.answer.ids) for row in self.going))
        draws = lambda: [float(row.uniforms[min(len(row.answer.ids), row.limit - 1)]) for row in rows]
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=self.end, pad_token_id=self.pad)
        ids = self.model.generate(
            self.ids,
            attention_mask=self.mask,
            generation_config=config,
            past_key_values=self.cache,
            logits_processor=LogitsProcessorList([*self.processors, Sampler([row.sampling for row in rows], draws)]),
            stopping_criteria=StoppingCriteriaList([_ReadAlong(rows, self.end, self.count)]),
        )
        self.ids, self.mask = ids, torch.cat([self.mask, self.mask.new_ones(len(rows), ids.shape[1] - before)], 1)
        kept = [number for number, row in enumerate(rows) if not row.finished]
        if kept and len(kept) < len(rows) and not self.processors:
            index = torch.tensor(kept, device=ids.device)
            self.ids, self.mask = self.ids[index], self.mask[index]
            self.cache.batch_select_indices(index)
            self.rows = self.going


class _ReadAlong(StoppingCriteria):
    """Hands each row its newest token and asks it whether it goes on."""

    def __init__(self, rows: Sequence[Row], end: int, count: Callable[[int], None]) -> None:
        self.rows, self.end, self.count = rows, end, count

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.count(sum(not row.finished for row in self.rows))
        ended = [row.take(token, self.end) for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True)]
        return torch.tensor(ended, device=input_ids.device)
