"""Ctrl-C and SIGTERM: the step under way is finished, a checkpoint is written, and the user is told how to go on."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from tilth.errors import TilthError


class Interrupted(TilthError):
    """Training was stopped from outside at `step`, after a checkpoint."""

    status = 130  # as the shell says of a program that Ctrl-C ended

    def __init__(self, step: int, steps: int, where: str) -> None:
        self.step = step
        super().__init__(
            f"stopped at step {step} of {steps}, with a checkpoint",
            where=where,
            hint="The same command again goes on from there, to the same weights as without the interruption.",
        )


class Stop:
    """Within it the first SIGINT or SIGTERM sets `asked`; a second one raises KeyboardInterrupt at once.

    Python delivers signals to the main thread only; elsewhere nothing is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
