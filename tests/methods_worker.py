"""One of two processes that train every objective; started by test_methods through torchrun. Arguments: a folder, and how they share the work."""

import os
import sys
from pathlib import Path

import torch

from tests.methods import OBJECTIVES, problem
from tilth.contracts import use
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training

torch.set_num_threads(1)
folder, parallel = Path(sys.argv[1]), sys.argv[2]
training = Training(
    lr=1e-3,
    batch_size=4,
    schedule=use("schedule", "constant"),
    log_every=1,
    compile=False,
    checkpoint_seconds=None,
    parallel=parallel,
)
for kind, name in OBJECTIVES:
    objective, examples = problem(kind, name, folder / f"{kind}-{name}-{os.environ['RANK']}")
    fit(objective, examples, training=training, budget=Budget(steps=4), folder=folder / "two" / f"{kind}-{name}", seed=0)
