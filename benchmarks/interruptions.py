"""Twenty times: `kill -9` at a random moment of a small run, the same call again, and the same weights bit for bit.

Notable: the moments are uniform over the whole run, checkpoint writing included (one is due every few steps); every run
is in a process of its own, forked before torch has started any thread, so that killing it is cheap and real.

    python -m benchmarks.interruptions [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import RESULTS, where
from benchmarks.lm_pretraining import Model, examples, network
from tilth.pretrain.text.causal import Causal
from tilth.training.checkpoints import named
from tilth.training.loop import Budget, Training, fit

SMALL = Model(width=32, depth=2, heads=2, length=32, batch=8, vocabulary=512)
STEPS = 150


def train(folder: Path) -> None:
    """One sitting; at the end folder/weights.safetensors holds the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective = Causal(network(SMALL))
    training = Training(lr=1e-3, batch_size=SMALL.batch, checkpoint_every=5, ema=0.99, log_every=3)
    fit(objective, examples(SMALL), training=training, budget=Budget(steps=STEPS), folder=folder, seed=1)
    save_file({name: value.detach().clone() for name, value in objective.named_parameters()}, folder / "weights.safetensors")


def sitting(folder: Path, kill_after: float | None) -> tuple[float, bool]:
    """(seconds, whether it was killed) of a process that trains in `folder`."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder,))
    begun = time.perf_counter()
    process.start()
    process.join(kill_after)
    killed = process.is_alive()
    if killed:
        process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        sys.exit(f"a sitting ended with {process.exitcode}")
    return time.perf_counter() - begun, killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    base = Path(tempfile.mkdtemp(prefix="tilth-interruptions-"))
    seconds, _ = sitting(base / "whole", None)
    expected = load_file(base / "whole" / "weights.safetensors")
    kills: list[dict[str, object]] = []
    while len(kills) < arguments.kills:
        folder = base / f"cut-{len(kills)}"
        shutil.rmtree(folder, ignore_errors=True)
        moment = moments.uniform(0, seconds)
        if not sitting(folder, moment)[1]:
            continue  # it was quicker than the moment: nothing was interrupted
        resumed_from = max((step for step, _ in named(folder)), default=0)
        sitting(folder, None)
        found = load_file(folder / "weights.safetensors")
        equal = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
        kills.append({"seconds": round(moment, 3), "checkpoint": resumed_from, "bitwise_equal": equal})
        print(kills[-1], flush=True)
        shutil.rmtree(folder)
    result = {
        "name": "interruptions", "kills": len(kills), "bitwise_equal": sum(bool(kill["bitwise_equal"]) for kill in kills),
        "steps": STEPS, "seconds": round(seconds, 3), "moments": kills,
        **where(),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "interruptions.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{result['bitwise_equal']} of {result['kills']} bitwise equal")
    shutil.rmtree(base)
    sys.exit(0 if result["bitwise_equal"] == result["kills"] else 1)


if __name__ == "__main__":
    main()
