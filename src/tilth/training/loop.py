"""The one loop: it drives every Objective and owns device, precision, processes, budget, logs and checkpoints.

Notable: a step is a function of its number (positions, batches, rate, randomness), so going on from a checkpoint repeats the
rest bit for bit; nothing in the loop waits for the device except a line of the log; methods plug in through `after_step`.
"""

from __future__ import annotations

import copy
import errno
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilth.context import Progress
from tilth.contracts import Examples, Objective
from tilth.errors import TilthError
from tilth.training import checkpoints
from tilth.training.checkpoints import Trained, seeded
from tilth.training.ema import Ema
from tilth.training.feed import Feed, held_out
from tilth.training.interrupt import Interrupted, Stop
from tilth.training.lineage import Lineage
from tilth.training.log import Log, Micro, NotFinite, Window, sum_of
from tilth.training.parallel import World, choose, whole, world
from tilth.training.plan import plan
from tilth.training.settings import Budget, Training, checked
from tilth.training.trial import Trial
from tilth.training.update import Update, finite, out_of_memory, whether_to_compile

__all__ = ["Budget", "Evaluation", "Fitted", "Interrupted", "Training", "fit"]


@dataclass(frozen=True)
class Evaluation:
    """Held-out loss while training: every `every` steps (None: ten times) and after the last step.

    Over all `examples`, or over `limit` of them, always the same ones.
    """

    examples: Examples
    every: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Fitted:
    """What training came to. loss: mean over the last logged window. log: path of log.jsonl. seconds: all sittings together.

    metrics: what a method without the loop (an edit, a guard) has to say of itself.
    """

    steps: int
    tokens: int
    samples: int
    seconds: float
    loss: float
    log: Path
    metrics: dict[str, float] = field(default_factory=dict)


def fit(
    objective: Objective,
    examples: Examples,
    *,
    training: Training,
    budget: Budget,
    folder: Path,
    seed: int,
    evaluation: Evaluation | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Train `objective` (its model and whatever else it owns) in place; afterwards it is in eval mode.

    folder receives log.jsonl, lineage.json and checkpoints/; the newest whole checkpoint there is gone on from, and the end
    is bitwise what it would have been without the interruption (same machine, same settings, same number of processes).
    Raises TilthError for what a user can mend (settings, a loss that is not finite, too little memory or disk) and
    Interrupted after Ctrl-C or SIGTERM, when a checkpoint has been written.
    """
    here = world()
    said = progress if progress and here.first else Progress()
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(seed, here), Stop() as stop:
        run = _Run(objective, examples, checked(training), checked(budget), folder, seed, evaluation, said, here, stop)
        try:
            return run.run()
        except NotFinite as error:
            raise run.explain(error) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            hint = "Free some space and run the same command again; it goes on from the last checkpoint."
            raise TilthError(f"there is no room on the disk: {error}", where=str(folder), hint=hint) from error
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise TilthError(
                f"memory ran out in step {run.step + 1}: {str(error).splitlines()[0]}",
                where=str(folder),
                hint=f"Lower batch_size (now {training.batch_size}; raise accumulate by as much to train alike), the length of "
                "the examples or the size of the model, or set 'precision: bf16'.",
            ) from error


class _Run:
    """One sitting of a run: what `fit` was given, and where it stands (`step` updates are done)."""

    def __init__(
        self, objective: Objective, examples: Examples, training: Training, budget: Budget, folder: Path, seed: int,
        evaluation: Evaluation | None, progress: Progress, here: World, stop: Stop,
    ) -> None:  # fmt: skip
        self.given, self.examples, self.training, self.budget, self.folder = objective, examples, training, budget, folder
        self.seed, self.evaluation, self.progress, self.world, self.stop = seed, evaluation, progress, here, stop
        if evaluation and len(evaluation.examples) < here.size:
            raise TilthError(f"{len(evaluation.examples)} held-out examples are too few for {here.size} processes")
        self.begun = self.saved_at = self.shown_at = time.perf_counter()
        self.mode = choose(training.parallel, objective, here)
        # Sharding changes modules for good, so a copy is sharded and the result copied back.
        self.objective = copy.deepcopy(objective) if self.mode == "fsdp" else objective.to(here.device)
        self.objective.train()
        self.window, self.log = Window(here), Log(folder / "log.jsonl", here)
        self.step = self.saved_step = 0
        self.lineage: Lineage | None = None

    def run(self) -> Fitted:
        """From wherever `folder` stands to the end."""
        planned = plan(self.folder, self.examples, self.training, self.budget, self.seed, self.world, lambda: self.trial)
        self.lineage = planned
        trained = Trained(self.update.objective, self.optimiser, self.average)
        self.resume(trained)
        steps, every = planned.steps, self.training.checkpoint_every
        self.progress.start("training", steps, "steps")
        with Feed(self.examples, planned, self.world, self.step, steps) as feed:
            for batches in feed:
                self.advance(batches, steps)
                last = self.step == steps
                line_due = last or self.step % self.training.log_every == 0
                stop, checkpoint_due = self.asked(line_due)
                if line_due:
                    self.write_line()
                if self.evaluation and (last or self.step % (self.evaluation.every or max(1, steps // 10)) == 0):
                    self.evaluate()
                if last or stop or checkpoint_due or (every and self.step % every == 0):
                    self.checkpoint(trained)
                if stop and not last:
                    raise Interrupted(self.step, steps, str(self.folder))
        self.progress.end()
        return self.finish()

    @cached_property
    def update(self) -> Update:
        """The objective made ready: compiled, sharded or wrapped."""
        steps = self.lineage.steps if self.lineage else 0
        compiled, note = whether_to_compile(self.training, self.budget, self.objective, steps, self.world)
        if note:
            self.progress.say(note)
        return Update(self.objective, self.training, self.world, self.mode, compiled)

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = self.training.optimiser.build(self.update.objective, self.training.lr)
        return made

    @cached_property
    def trial(self) -> Trial:
        return Trial(self.update, self.optimiser, self.examples)

    @cached_property
    def average(self) -> Ema | None:
        return Ema(self.update.objective, self.training.ema) if self.training.ema else None

    @cached_property
    def schedule(self) -> Any:
        return self.training.schedule.build()

    def seconds(self) -> float:
        """Since the run began, without the time between sittings."""
        return time.perf_counter() - self.begun

    def advance(self, batches: list[Any], steps: int) -> None:
        """One step."""
        rate = self.training.lr * self.schedule(self.step, steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        micros, norm = self.update(batches, self.optimiser)
        self.step += 1
        self.objective.after_step(self.step)
        if self.average:
            self.average.update(self.step)
        self.window.add(self.step, micros, norm)

    def asked(self, line_due: bool) -> tuple[bool, bool]:
        """(stop, write a checkpoint): known at every step when alone, agreed upon with each line otherwise."""
        now = time.perf_counter()
        if now - self.shown_at > 0.1:
            self.shown_at = now
            self.progress.update(self.step)
        waited = self.training.checkpoint_seconds is not None and now - self.saved_at >= self.training.checkpoint_seconds
        asked = [self.stop.asked, waited]
        if line_due:
            asked = self.window.fetch(*asked)
        elif self.world.size > 1:
            return False, False
        return asked[0], asked[1]

    def write_line(self) -> None:
        """Log the steps since the last line; loss and parts are their means."""
        seconds = self.seconds()
        line = {"step": self.step, "tokens": self.window.tokens, "samples": self.window.samples, "seconds": round(seconds, 3)}
        line |= self.window.line() | {"lr": self.optimiser.param_groups[0]["lr"]}
        self.log.write(line)
        self.progress.update(self.step, loss=line["loss"], tokens_per_second=self.window.tokens / seconds)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Log the held-out loss, of the averaged weights where there is an average. Training's randomness is untouched."""
        assert self.evaluation
        sums = torch.zeros((), dtype=torch.float64, device=self.world.device)
        names: list[str] = []
        if self.average:
            self.average.swap()
        self.objective.eval()
        with seeded(self.seed, self.world):
            for batch in held_out(
                self.evaluation.examples, self.evaluation.limit, self.training.batch_size, self.seed, self.world
            ):
                with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.training.precision == "bf16"):
                    total, count, parts = self.update.plain(batch)
                names = list(parts)
                found = sum_of([Micro(total, count, parts, 0, 0)])
                # A part that is no number is left out of its mean, as signs of collapse are of a batch of one; the loss never is.
                there = torch.cat([found.new_ones(1), found[2:].isfinite()])
                sums = sums + torch.stack([torch.where(there > 0, found[1:], 0), found[0] * there])
        self.objective.train()
        if self.average:
            self.average.swap()
        (whole, *each), (weight, *weights) = self.world.sum(sums).tolist()
        line = {"step": self.step, "seconds": round(self.seconds(), 3), "held_out_loss": whole / weight}
        told = {name: part / over for name, part, over in zip(names, each, weights, strict=True) if over}
        self.log.write(line | {"held_out_parts": told})
        self.progress.update(self.step, held_out_loss=whole / weight)

    def checkpoint(self, trained: Trained) -> None:
        """Write one, unless what would be written is not finite: then NotFinite, and the one before stays the newest."""
        self.window.fetch()
        broken = torch.tensor(float(not finite(self.update.objective)), device=self.world.device)
        if self.world.sum(broken).item():
            raise NotFinite(self.step, "model")
        self.log.sync()
        state = {"window": self.window.state(), "seconds": self.seconds()}
        checkpoints.save(self.folder, self.step, trained, state, self.world, self.training.keep_checkpoints)
        self.saved_at, self.saved_step = time.perf_counter(), self.step

    def resume(self, trained: Trained) -> None:
        """Go on from the newest whole checkpoint, saying which were passed over."""
        found = None
        if self.world.first:
            for step, path in checkpoints.named(self.folder):
                if not (problem := checkpoints.damage(path)):
                    found = step
                    break
                self.progress.say(f"the checkpoint of step {step} is damaged ({problem}): going on from the one before")
        step = self.world.agree(-1 if found is None else found)
        if step >= 0:
            state = checkpoints.load(checkpoints.place(self.folder, step), trained, self.world)
            self.window.load(state["window"])
            self.begun -= state["seconds"]
            self.step = self.saved_step = step
            self.progress.say(f"going on from step {step}")
        self.log.rewind(self.step)

    def finish(self) -> Fitted:
        """The model holds the result: averaged weights where there is an average."""
        assert self.lineage
        if self.average:
            self.average.swap()
        if self.given is not self.objective:
            trained = self.objective.state_dict(keep_vars=True)
            with torch.no_grad():
                for name, value in self.given.state_dict(keep_vars=True).items():
                    value.copy_(whole(trained[name].detach()))
        self.given.eval()
        window = self.window
        return Fitted(self.step, window.tokens, window.samples, self.seconds(), self.log.last_loss(), self.log.path)

    def explain(self, error: NotFinite) -> TilthError:
        """What went wrong, at which step, on which rows, and what is left."""
        assert self.lineage
        rows = np.unique(np.concatenate([np.asarray(part) for part in self.examples.rows(self.lineage.examples(error.step))]))
        shown = ", ".join(map(str, rows[:50])) + (f" ... ({len(rows)} in all)" if len(rows) > 50 else "")
        newest = next(checkpoints.checkpoints(self.folder), None)
        kept = f"The last good checkpoint is {newest[1]} (step {newest[0]})." if newest else "There is no checkpoint yet."
        return TilthError(
            f"the {error.what} of step {error.step} is not a finite number; it was computed from rows {shown}",
            where=str(self.folder),
            hint=f"{kept} Look at these rows, or lower lr (now {self.training.lr:g}), set clip or use 'precision: fp32'.",
        )
