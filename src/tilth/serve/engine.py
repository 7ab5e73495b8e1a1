"""The one thread that owns the model: rows wait, are taken together, and are answered batch by batch.

Notable: batches take turns of a few tokens, so that a short request does not wait for a long one; where a guard sets hooks
on the model, its batch runs alone from the first token to the last, since hooks act on everything the model runs meanwhile. A
guard that fails answers with an error, never with the bare model's words.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tilth.backbones.evaluating import evaluating
from tilth.batches.text.encoding import end_token, pad_token
from tilth.contracts import Guard
from tilth.evaluate.guarded import bare, flagged
from tilth.serve.answer import pieces
from tilth.serve.decoding import Decoding, Row
from tilth.serve.errors import Failed, Overloaded

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel
    from tilth.serve.meters import Meters

_TURN = 16  # tokens a batch makes before the next one has its turn
_log = logging.getLogger("tilth.serve")


class Engine:
    """batch_rows: continuations generated at once; waiting_rows: those that may wait besides."""

    def __init__(self, text_model: TextModel, meters: Meters, *, batch_rows: int = 32, waiting_rows: int = 1024) -> None:
        self.text_model, self.meters = text_model, meters
        self.batch_rows, self.waiting_rows = batch_rows, waiting_rows
        self._waiting: deque[Row] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._batches: deque[Decoding] = deque()
        self._changed, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the turn that is running; what still waits fails. Meant for when no request is left, or none shall be."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, rows: Sequence[Row]) -> None:
        """Have rows answered; each `receive`s from the engine's thread. Raises Overloaded."""
        with self._changed:
            if self._stopping or len(self._waiting) + len(rows) > self.waiting_rows:
                raise Overloaded
            self._waiting.extend(rows)
            self.meters.waiting.set(len(self._waiting))
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run something else that needs the model, between two turns."""
        future: Future[Any] = Future()
        with self._changed:
            if self._stopping or len(self._calls) >= self.waiting_rows:
                raise Overloaded
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def _work(self) -> None:
        with evaluating(self.text_model.model):
            while self._ready():
                self._run_calls()
                self._admit(self._take())
                if self._batches:
                    batch = self._batches.popleft()
                    if self._attempt(batch.rows, partial(batch.advance, _TURN)) and batch.going:
                        self._batches.append(batch)
                self.meters.running.set(self._active())
            for row in (*self._waiting, *(row for batch in self._batches for row in batch.rows)):
                row.fail(Failed())

    def _ready(self) -> bool:
        """Wait until there is something to do; False when the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._calls or self._batches)
            return not self._stopping

    def _active(self) -> int:
        return sum(len(batch.going) for batch in self._batches)

    def _take(self) -> list[Row]:
        """Rows that there is room for, in the order they came."""
        with self._changed:
            room = self.batch_rows - self._active()
            taken = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            self.meters.waiting.set(len(self._waiting))
        return [row for row in taken if not row.cancelled]

    def _run_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)

    def _attempt(self, rows: Sequence[Row], function: Callable[[], Any]) -> bool:
        """Whether it went well; if not, the rows fail."""
        rows = list(rows)
        try:
            function()
        except Exception:
            _log.exception("a batch failed")
            for row in rows:
                row.fail(Failed())
            return False
        return True

    def _admit(self, rows: list[Row]) -> None:
        """Begin with rows; those the guard concerns apart from the others."""
        if not rows:
            return
        self.meters.prompt_tokens.inc(sum(len(row.prompt.ids) for row in rows))
        acts: list[bool] = []
        if not self._attempt(rows, lambda: acts.extend(self._flags(rows))):
            return
        free = [row for row, act in zip(rows, acts, strict=True) if not act]
        concerned = [row for row, act in zip(rows, acts, strict=True) if act]
        if free:
            self._attempt(free, lambda: self._batches.append(self._decoding(free)))
        if concerned and (guard := self.text_model.guard) is not None:
            self.meters.guarded.inc(len(concerned))
            self._attempt(concerned, lambda: self._guarded(guard, concerned))

    def _flags(self, rows: list[Row]) -> list[bool]:
        """Whether the guard concerns each row; every different prompt is looked at once."""
        texts = list(dict.fromkeys(row.prompt.text for row in rows))
        found = dict(zip(texts, np.asarray(flagged(self.text_model, texts)).tolist(), strict=True))
        return [found[row.prompt.text] for row in rows]

    def _decoding(self, rows: list[Row], processors: Sequence[Any] = ()) -> Decoding:
        self.meters.batch.observe(len(rows))
        model, tokenizer = self.text_model.model, self.text_model.tokenizer
        end, pad = end_token(tokenizer), pad_token(tokenizer)
        return Decoding(model, rows, end=end, pad=pad, count=self.meters.generated_tokens.inc, processors=processors)

    def _guarded(self, guard: Guard, rows: list[Row]) -> None:
        """Answer rows the guard concerns: as `evaluate.guarded.continued` does, with each row's own limit and sampling."""
        without = bare(self.text_model)
        if guard.refusal is not None:
            for row in rows:
                row.say(pieces(guard.refusal))
            return
        for limit in sorted({row.limit for row in rows}):  # so that all rows of a batch have room until its end
            some = [row for row in rows if row.limit == limit]
            own = guard.decode(without, [row.prompt.text for row in some], limit)
            if own is None:
                decoding = self._decoding(some, guard.processors(without))
                if type(guard).acting is Guard.acting:  # no hooks: nobody else is touched
                    self._batches.append(decoding)
                    continue
                with guard.acting(without):
                    decoding.advance(limit)
            else:
                for row, text in zip(some, own, strict=True):
                    row.say(pieces(text))
