"""Progress on a terminal: one live bar with rate, figures and time left; elsewhere a line now and then."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from tilth import context


def progress(*, quiet: bool = False) -> context.Progress:
    """Bars on a terminal, lines in a log, nothing when quiet."""
    if quiet:
        return context.Progress()
    return Bars() if sys.stderr.isatty() else Lines()


def figures(shown: dict[str, float]) -> str:
    """'loss 3.21  tokens/s 5,200'."""
    return "  ".join(
        f"{name.replace('_', ' ')} {f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'}" for name, value in shown.items()
    )


class Bars(context.Progress):
    """One bar at a time."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.live: Progress | None = None

    def start(self, task: str, total: float | None, unit: str) -> None:
        self.end()
        self.unit, self.began = unit, time.monotonic()
        self.live = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[figures]}", style="cyan"), TimeRemainingColumn(), console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.live.add_task(task, total=total, done="", figures="")
        self.live.start()

    def update(self, done: float, **shown: float) -> None:
        if self.live:
            rate = done / max(time.monotonic() - self.began, 1e-9)
            text = f"{done:,.0f} {self.unit}  {rate:,.3g} {self.unit}/s"
            self.live.update(self.task, completed=done, done=text, figures=figures(shown))

    def end(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None

    def say(self, line: str) -> None:
        (self.live.console if self.live else self.console).print(line)


class Lines(context.Progress):
    """A line when a task starts, every ten seconds, and when it ends."""

    every = 10.0

    def start(self, task: str, total: float | None, unit: str) -> None:
        self.task, self.total, self.unit = task, total, unit
        self.began = self.told = time.monotonic()
        self.last = ""

    def update(self, done: float, **shown: float) -> None:
        now = time.monotonic()
        seconds = max(now - self.began, 1e-9)
        left = ""
        if self.total and done:
            left = f", {max(self.total - done, 0) * seconds / done:,.0f} s left"
        of = f" of {self.total:,.0f}" if self.total else ""
        self.last = (
            f"  {self.task}: {done:,.0f}{of} {self.unit}, {done / seconds:,.3g} {self.unit}/s{left}  {figures(shown)}".rstrip()
        )
        if now - self.told >= self.every:
            self.told = now
            self.say(self.last)

    def end(self) -> None:
        if getattr(self, "last", ""):
            self.say(self.last)
            self.last = ""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
