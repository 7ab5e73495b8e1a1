"""A process that trains; forked by tests to be killed, or started twice by torchrun with its arguments as JSON."""

import json
import os
import resource
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from tests.training.doubles import Sequences, objective
from tilth.context import Progress
from tilth.errors import TilthError
from tilth.training.loop import Budget, Evaluation, Training, fit


class Killer(Progress):
    """Sends this process a signal when a step has been done."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def update(self, done: float, **shown: float) -> None:
        if done >= self.step:
            self.step = sys.maxsize
            signal.raise_signal(self.number)  # to this thread: a signal to the process may arrive a step later or earlier


def main(said: dict) -> int:
    torch.set_num_threads(1)
    model = objective(said.get("dropout", 0.1))
    killer = Killer(said["kill_at"], getattr(signal, said["signal"])) if "kill_at" in said else None
    try:
        fitted = fit(
            model,
            Sequences(said["count"]),
            training=Training(**said["training"]),
            budget=Budget(**said["budget"]),
            folder=Path(said["folder"]),
            seed=3,
            evaluation=Evaluation(Sequences(5), 10) if said.get("evaluate") else None,
            progress=killer,
        )
    except TilthError as error:
        print(error)
        return 2
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(model.state_dict(), said["out"])
        print(json.dumps({"steps": fitted.steps, "tokens": fitted.tokens, "loss": fitted.loss}))
    return 0


def forked(said: dict, limit: int | None, output: str) -> None:
    """`main` with its output in a file; limit: largest file it may write, in bytes, as if the disk were full."""
    with Path(output).open("w") as file, redirect_stdout(file), redirect_stderr(file):
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = main(said)
    sys.exit(code)


if __name__ == "__main__":
    raise SystemExit(main(json.loads(sys.argv[1])))
