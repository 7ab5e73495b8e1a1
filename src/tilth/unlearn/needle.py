"""Needle: take a concept out by destroying the few value vectors it is written in.

Notable: what trains is a copy of those vectors alone, put into the frozen weight at each use, so every other number of the
model is bit-identical afterwards, and the optimiser keeps states for a few thousand numbers and not for a whole matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from tilth.backbones.locations import feed_forwards
from tilth.contracts import Configured, Edit, Kind, Objective, Reparametrisation, method
from tilth.errors import TilthError
from tilth.registry import Positive, settings_of
from tilth.training.loop import fit
from tilth.training.settings import Training
from tilth.unlearn.forget import prepared
from tilth.unlearn.task import Task
from tilth.unlearn.value_vectors import Locate, Place, concepts, vector


@method("unlearn", "needle", systems=[40])
class Needle(Edit):
    """v <- v + N(0, s^2 I), or 0, for the located vectors v; then, with `objective`, training of these alone (arXiv 2406.11614, section 6).

    ablation: 'noise' adds it, 'zero' empties the vectors, 'none' leaves them to the training. s = noise * |v| (relative; the
    paper's 0.1 at Llama's |v| of about 1), or s = noise. objective: an unlearning objective trained with the stage's
    `training` and `budget`, without weight decay; None: none is trained.
    Metrics: vectors, and mean cosine and L2 between each before and after.
    Deviation: the official code masks the gradient of the whole matrix and decays all of it; here nothing else can move.
    """

    def __init__(
        self,
        *,
        locate: Locate = Locate(),
        ablation: Literal["noise", "zero", "none"] = "noise",
        noise: Positive = 0.1,
        relative: bool = True,
        objective: Annotated[Configured, Kind("unlearn")] | None = None,
    ) -> None:
        if objective is not None and not issubclass(objective.cls, Objective):
            raise TilthError(f"'{objective.name}' is not trained by gradient, so it cannot train the located vectors")
        self.locate, self.ablation, self.noise, self.relative, self.objective = locate, ablation, noise, relative, objective

    def __call__(self, task: Task) -> dict[str, float]:
        """Change the located vectors of the task's model in place."""
        model = task.text_model.model
        found = concepts(task.text_model, task.forget, task.retain, self.locate)
        places = list(dict.fromkeys(Place(place.layer, place.column) for concept in found for place in concept.places))
        before = torch.stack([vector(model, place) for place in places]).float()
        if self.ablation != "none":
            ablate(model, places, None if self.ablation == "zero" else self.noise, relative=self.relative, seed=task.context.seed)
        steps = self._train(task, places) if self.objective is not None else 0
        after = torch.stack([vector(model, place) for place in places]).float()
        device = after.device
        cosine = torch.cosine_similarity(before.to(device), after, dim=1)
        task.context.exhibit(
            "table",
            "Vectors that were erased",
            columns=["concept", "layer", "vector", "overlap with the keywords"],
            rows=[[concept.name, place.layer, place.column, place.score] for concept in found for place in concept.places],
            note="",
        )
        return {
            "vectors": float(len(places)),
            "cosine": float(cosine.mean()),
            "l2": float((after - before.to(device)).norm(dim=1).mean()),
            "trained_steps": float(steps),
        }

    def _train(self, task: Task, places: Sequence[Place]) -> int:
        """Train the vectors by the objective, everything else frozen; gives the steps."""
        model = task.text_model.model
        assert self.objective is not None
        objective: Objective = self.objective.build(model)
        examples = prepared(objective, task)
        columns = Columns(places)
        columns.apply(model)
        try:
            fitted = fit(
                objective, examples,
                training=without_decay(task.training), budget=task.budget, folder=task.context.folder,
                seed=task.context.seed, progress=task.context.progress,
            )  # fmt: skip
        finally:
            columns.fold(model)
        return fitted.steps


class Columns(Reparametrisation):
    """W with the vectors at `places` replaced by parameters of their own, which alone have gradients; outputs start the same."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places
        self.trained: list[nn.Parameter] = []

    def apply(self, module: nn.Module) -> None:
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module.requires_grad_(False)
        parts = feed_forwards(module)
        for layer in sorted({place.layer for place in self.places}):
            index = torch.tensor(sorted({place.column for place in self.places if place.layer == layer}))
            down = parts[layer].down
            own = _Replaced(parts[layer].values().detach(), index, 0 if isinstance(down, Conv1D) else 1)
            parametrize.register_parametrization(down, "weight", own, unsafe=True)

    def fold(self, module: nn.Module) -> None:
        for part in [part for part in module.modules() if parametrize.is_parametrized(part, "weight")]:
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
        for parameter in self.trained:
            parameter.requires_grad_(True)


class _Replaced(nn.Module):
    """weight -> weight with slices `index` along `dim` replaced by `vectors` (slices, hidden)."""

    def __init__(self, values: Tensor, index: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        index = index.to(values.device)
        self.register_buffer("index", index, persistent=False)
        self.vectors = nn.Parameter(values[index].clone())

    def forward(self, weight: Tensor) -> Tensor:
        vectors = self.vectors if self.dim == 0 else self.vectors.t()
        index: Any = self.index
        return weight.index_copy(self.dim, index, vectors)


@torch.no_grad()
def ablate(model: Any, places: Sequence[Place], noise: float | None, *, relative: bool = True, seed: int = 0) -> None:
    """Add N(0, s^2 I) to each vector, s = noise, times its length if `relative`; without noise set it to 0. In place."""
    parts = feed_forwards(model)
    generator = torch.Generator().manual_seed(seed)
    for place in places:
        values = parts[place.layer].values()
        old = values[place.column].float().cpu()
        if noise is None:
            values[place.column] = 0.0
        else:
            scale = noise * (old.norm() if relative else 1.0)
            values[place.column] = (old + scale * torch.randn(len(old), generator=generator)).to(values.dtype).to(values.device)


def without_decay(training: Training) -> Training:
    """The same training with no weight decay, where its optimiser has one."""
    optimiser = training.optimiser
    if "weight_decay" not in settings_of(optimiser.cls).model_fields:
        return training
    return replace(training, optimiser=Configured(optimiser.kind, optimiser.name, {**optimiser.settings, "weight_decay": 0.0}))
