"""The random-feature study of NPO: what an unlearning objective does to a linear classifier, where theory can be checked.

Notable: runs the very objectives that language models are trained with (an answer is then one class label), on real
images, in seconds; the features never change, so a step is one matrix product over a set that stays in memory.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from tilth.batches.order import hashed_uniform
from tilth.context import Context
from tilth.contracts import Batch, Benchmark, Scores, method, use
from tilth.registry import Configured, Kind, Positive, PositiveInt
from tilth.unlearn.likelihood import answer_log_probability

_TRAIN = 1200  # of the 1797 digits; the rest is the test set
_FORGET = 2  # classes 0 and 1 are forgotten


@method("benchmark", "random_feature_unlearning", systems=[33])
class RandomFeatureUnlearning(Benchmark):
    """Forget two classes of scikit-learn's digits with `method`; the model handed in is not used   (arXiv 2404.05868, section 3)

    Pixels / 16, x -> relu(x W) with W ~ N(0, 1/64) fixed, a linear head A over 10 classes fitted to 1200 images by
    logistic regression (C: inverse penalty), then `steps` full-batch gradient steps of the objective: forget = training
    images of classes 0 and 1, retain = the others. Utility is test accuracy on classes 2-9, drift the Frobenius norm of A - A_0.

    Deviates from the paper, which draws Gaussian inputs and two classes: real images make 'utility' mean something.

    Metrics: collapse_step (first step with utility below 0.5; `steps` if there is none), collapsed (0 or 1), drift,
    drift_halfway, drift_growth (their ratio: 2 if linear in steps, near 1 if logarithmic), utility, utility_before,
    forget_accuracy (training images).
    """

    def __init__(
        self,
        *,
        method: Annotated[Configured, Kind("unlearn")] = use("unlearn", "npo", beta=1.0, retain=use("retain", "none")),
        features: PositiveInt = 128,
        lr: Positive = 0.5,
        steps: PositiveInt = 1000,
        C: Positive = 50.0,
    ) -> None:
        self.method, self.features, self.lr, self.steps = method, features, lr, steps
        self.C = C

    def __call__(self, model: Path, context: Context) -> Scores:
        batch, test, head = self.bed(context.seed)
        start = head.weight.detach().clone()
        utilities, drifts = torch.empty(self.steps + 1), torch.empty(self.steps + 1)
        objective = self.method.build(head)
        optimiser = torch.optim.SGD(head.parameters(), lr=self.lr)
        context.progress.start("unlearn", self.steps, "steps")
        for step in range(self.steps + 1):
            with torch.no_grad():
                utilities[step], drifts[step] = accuracy(head, test), torch.linalg.norm(head.weight - start)
            if step < self.steps:
                optimiser.zero_grad()
                objective(batch).total.backward()
                optimiser.step()
                objective.after_step(step + 1)
            if step % 100 == 0:
                context.progress.update(step)
        context.progress.end()
        self.show(utilities, drifts, context)
        below = torch.nonzero(utilities < 0.5)
        half = drifts[self.steps // 2].item()
        return Scores(
            {
                "collapse_step": float(below[0]) if len(below) else float(self.steps),
                "collapsed": float(len(below) > 0),
                "drift": drifts[-1].item(),
                "drift_halfway": half,
                "drift_growth": drifts[-1].item() / max(half, 1e-12),
                "utility": utilities[-1].item(),
                "utility_before": utilities[0].item(),
                "forget_accuracy": accuracy(head, batch.forget).item(),
            }
        )

    def bed(self, seed: int) -> tuple[Batch, Batch, nn.Linear]:
        """The batch (forget with its reference, retain), the test images of the classes that stay, and the trained head."""
        images, labels = load_digits(return_X_y=True)
        rows = np.arange(len(labels))
        order = np.argsort(hashed_uniform(seed, "digits", rows))
        weights = np.random.default_rng(seed).normal(0, 1 / 8, (64, self.features))
        x = torch.from_numpy(np.maximum(images / 16 @ weights, 0).astype(np.float32))
        y = torch.from_numpy(labels)

        def part(chosen: np.ndarray) -> Batch:
            return Batch(samples=len(chosen), inputs=x[chosen], labels=y[chosen])

        train, test = order[:_TRAIN], order[_TRAIN:]
        fitted = LogisticRegression(C=self.C, fit_intercept=False, max_iter=10_000).fit(x[train].numpy(), labels[train])
        head = nn.Linear(self.features, 10, bias=False)
        head.weight.data = torch.from_numpy(fitted.coef_.astype(np.float32))
        forget, retain = part(train[labels[train] < _FORGET]), part(train[labels[train] >= _FORGET])
        with torch.no_grad():
            forget = Batch(samples=forget.samples, **forget, reference=answer_log_probability(head, forget))
        return Batch(samples=forget.samples, forget=forget, retain=retain), part(test[labels[test] >= _FORGET]), head

    def show(self, utilities: Tensor, drifts: Tensor, context: Context) -> None:
        """Both curves for the report, at a hundred steps."""
        steps = np.unique(np.linspace(0, self.steps, 101).astype(int)).tolist()
        for title, values in (("Utility while forgetting", utilities), ("Distance from the model before", drifts)):
            series = {self.method.name: [[step, values[step].item()] for step in steps]}
            context.exhibit("curves", title, series=series, x="step", y=title.split()[0].lower(), log=False)


def accuracy(head: nn.Module, batch: Batch) -> Tensor:
    """Share of the batch that `head` labels right: a scalar."""
    return (head(batch.inputs).argmax(1) == batch.labels).float().mean()
