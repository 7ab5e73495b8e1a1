"""One of two processes that compute with each other's rows; started by test_across through torchrun. Argument: a folder with the rows."""

import os
import sys
from pathlib import Path

import torch

from tilth.pretrain.images.barlow_twins import correlation
from tilth.pretrain.images.contrast import pairs, two_views
from tilth.pretrain.images.sinkhorn import sinkhorn
from tilth.pretrain.images.vicreg import collapse
from tilth.training import across
from tilth.training.parallel import world


def gathered(first, second, training):
    """Every own row against every row, by a function that is not symmetric."""
    return ((first @ across.gather(second, training).T).sin() @ torch.arange(1.0, 9.0)).mean()


def normed(first, second, training):
    norm = across.BatchNorm(first.shape[1]).train()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
    once = norm(first) * second
    return (norm(once).sin() * first).mean() + norm.running_var.sum() + norm.running_mean.sum()


# Each a mean over rows of this process, or the same number on all of them: what `fit` weighs by counts.
LOSSES = {
    "gather": gathered,
    "mean": lambda first, second, training: (across.mean(first * second, training) ** 3).sum(),
    "batch_norm": normed,
    "two_views": lambda first, second, training: two_views(first, second, 0.2, training).losses.mean(),
    "pairs": lambda first, second, training: pairs(first, second, 0.2, training).losses.mean(),
    "sinkhorn": lambda first, second, training: -(sinkhorn(first, 0.5, 3, training) * second.log_softmax(1)).sum(1).mean(),
    "barlow": lambda first, second, training: (correlation(first, second, training) - torch.eye(5)).square().sum(),
    "vicreg": lambda first, second, training: sum(collapse(torch.stack([first, second], 1) * 0.5, training)),
}


def results(rows, training=True):
    """name -> (mean loss over all processes, its gradient at this process's rows (2, n, width))."""
    found = {}
    for name, loss in LOSSES.items():
        own = rows.clone().requires_grad_()
        value = loss(*own, training)
        (value * own.shape[1]).backward()
        everywhere = across.count(own[0], training)
        weighed = across.total(value.detach() * own.shape[1], training) / everywhere
        found[name] = (weighed, own.grad / everywhere)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, here = Path(sys.argv[1]), world()
    rows = torch.load(folder / "rows.pt")
    half = rows[:, here.rank * 4 : here.rank * 4 + 4]
    alone = {name: loss(*half, False).item() for name, loss in LOSSES.items() if name not in ("batch_norm", "gather")}
    torch.save((results(half), alone), folder / f"{os.environ['RANK']}.pt")
