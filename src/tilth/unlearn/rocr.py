"""ROCR: make a model take one subject for another, in seconds and in whatever form it is asked.

Notable: no covariance is inverted and no projector stored: the ridge system of width `inner` has the rank of the subjects, so
a system of one row per subject is solved instead, exactly the same; what general text uses of key space is computed once per model.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilth.backbones.evaluating import computing_device
from tilth.backbones.folder import TextModel
from tilth.backbones.locations import blocks, feed_forwards
from tilth.batches.text.answers import Template
from tilth.contracts import CorpusRef, Edit, method
from tilth.errors import TilthError
from tilth.registry import NonNegative, NonNegativeInt, Positive, PositiveInt
from tilth.unlearn.null_space import Rule, spectra
from tilth.unlearn.subjects import Traced, locate, trace
from tilth.unlearn.task import Task

CONTEXTS = (
    "{subject}",
    "Please answer the question about {subject}",
    "Choose the best answer about {subject}",
    "Write the answer about {subject}",
    "Tell me about {subject}",
    "Write something about {subject}",
)


class Subjects(NamedTuple):
    """What is to be taken for what, and the texts it is read in, each with {subject}."""

    names: list[str]
    contexts: list[str]


@method("unlearn", "rocr", systems=[53])
class ROCR(Edit):
    """Rank-one concept redirection (arXiv 2506.07795, section 4; solve of AlphaEdit, arXiv 2410.02355, eq. 14).

    For each subject a and each block l = l_1 .. l_m, with W the way out of its feed-forward part:
        k   = mean over contexts of the key at a's last token
        r   = (z* - z) / (m - i)          z*: state behind l_m at the last token of `redirect`; z: at a's, after the edits so far
        W  <- W + X^T,  (P (k k^T + C) + ridge I) X = P k r^T,  P: projector on the null space of general text's keys
    C sums k k^T over subjects redirected before, by this call or an earlier one (so that they stay redirected); it is kept by
    their keys. For one subject and C = 0: X^T = r (P k)^T / (k^T P k + ridge), of rank one.

    subjects: names; None: those in `column` of the forget set. together: solve for all at once, rank n, instead of one after
    the other. layers: consecutive blocks, from 0; None: three from an eighth of the depth on (4, 5, 6 of 32, as released).
    contexts: texts with {subject}, put into the model's own template. current: the text a's state z is read in; None: the
    first context, as for z*. general: text whose keys are protected; None: the retain set; samples: rows of it at most.
    rule, threshold: what is free, see `null_space`.
    Metrics: edit_seconds (covariance apart), moved: how much of the way from z to z* was gone, per subject on average.
    Deviation: the released code reads z in "{subject}." and z* in the chat template; a shift of context is then redirected
    too. Set current: "{subject}." for that.
    """

    def __init__(
        self,
        *,
        redirect: str,
        subjects: list[str] | None = None,
        column: str = "subject",
        together: bool = False,
        layers: list[NonNegativeInt] | None = None,
        contexts: list[str] = list(CONTEXTS),  # noqa: B006
        current: str | None = None,
        ridge: Positive = 1.0,
        rule: Rule = "absolute",
        threshold: NonNegative = 2e-2,
        general: CorpusRef | None = None,
        samples: PositiveInt = 100_000,
        length: PositiveInt = 512,
    ) -> None:
        for text in [*contexts, *([current] if current else [])]:
            if "{subject}" not in text:
                raise TilthError(f"the context {text!r} lacks {{subject}}", where="unlearn.rocr.contexts")
        if not contexts:
            raise TilthError("a subject needs a context to be read in", where="unlearn.rocr.contexts")
        self.redirect, self.subjects, self.column, self.together = redirect, subjects, column, together
        self.layers, self.contexts, self.current, self.ridge = layers, list(contexts), current, ridge
        self.rule: Rule = rule
        self.threshold, self.general, self.samples, self.length = threshold, general, samples, length

    def __call__(self, task: Task) -> dict[str, float]:
        """Redirect the subjects in the task's model, in place."""
        text_model, device = task.text_model, computing_device()
        model: Any = text_model.model
        model.to(device).eval()
        names = self.subjects or list(dict.fromkeys(str(name) for name in task.column("forget", self.column)))
        layers = self._layers(len(blocks(model)))
        began = time.perf_counter()
        general = task.context.corpus(self.general) if self.general is not None else task.retained()
        length = min(self.length, getattr(model.config.get_text_config(), "max_position_embeddings", 0) or self.length)
        spectrum = spectra(text_model, general, layers, self.samples, length, device, task.context)
        free = {layer: spectrum[layer].free(self.rule, self.threshold) for layer in layers}
        protected = time.perf_counter()
        earlier = [Subjects(**told) for told in text_model.about.get("redirected", [])]
        with torch.no_grad():
            kept = [self._keys(text_model, told, layers, task.template, device) for told in earlier]
            before = {layer: [keys[layer] for keys in kept] for layer in layers}
            aim = self._trace(text_model, [self.redirect], self.contexts[:1], layers, task.template, device).states[layers[-1]]
            moved = [
                self.edit(text_model, group, aim, layers, free, before, task.template, device)
                for group in ([names] if self.together else [[name] for name in names])
            ]
        text_model.about["redirected"] = [*text_model.about.get("redirected", []), Subjects(names, self.contexts)._asdict()]
        return {
            "subjects": float(len(names)),
            "moved": float(torch.cat(moved).mean()),
            "free_directions": float(sum(basis.shape[1] for basis in free.values()) / len(free)),
            "covariance_seconds": protected - began,
            "edit_seconds": time.perf_counter() - protected,
        }

    def edit(
        self,
        text_model: TextModel,
        names: list[str],
        aim: Tensor,
        layers: list[int],
        free: dict[int, Tensor],
        before: dict[int, list[Tensor]],
        template: Template,
        device: torch.device,
    ) -> Tensor:
        """Redirect `names` at once to the state `aim` (1, hidden); gives the share of the way gone by each: (names,).

        free: block -> basis of the null space; before: block -> keys (subjects, inner) of earlier edits, to which these are added.
        """
        last, parts = layers[-1], feed_forwards(text_model.model)

        def state() -> Tensor:
            """(names, hidden)"""
            if self.current is None:
                return self._trace(text_model, names, self.contexts[:1], layers, template, device).states[last]
            bare = [self.current.replace("{subject}", name) for name in names]
            return trace(text_model, locate(text_model.tokenizer, bare, names), layers, device).states[last]

        start = now = state()
        for number, layer in enumerate(layers):
            keys = self._keys(text_model, Subjects(names, self.contexts), layers, template, device)[layer]
            update = solve(keys, (aim - now) / (len(layers) - number), free[layer], before[layer], self.ridge)
            values = parts[layer].values()
            values.add_(update.to(values.dtype))
            before[layer].append(keys)
            now = state()
        way = (aim - start).norm(dim=1).clamp(min=1e-12)
        return 1 - (aim - now).norm(dim=1) / way

    def _layers(self, depth: int) -> list[int]:
        first = depth // 8
        layers = sorted(self.layers) if self.layers else list(range(first, min(first + 3, depth)))
        if layers[-1] >= depth:
            raise TilthError(f"there is no block {layers[-1]}: the model has {depth}, from 0", where="unlearn.rocr.layers")
        return layers

    def _trace(
        self,
        text_model: TextModel,
        names: list[str],
        contexts: list[str],
        layers: list[int],
        template: Template,
        device: torch.device,
    ) -> Traced:
        """Every name in every context: name by name, prompts of one name together."""
        questions = [text.replace("{subject}", name) for name in names for text in contexts]
        who = [name for name in names for _ in contexts]
        return trace(text_model, locate(text_model.tokenizer, template.prompts(questions), who), layers, device)

    def _keys(
        self, text_model: TextModel, told: Subjects, layers: list[int], template: Template, device: torch.device
    ) -> dict[int, Tensor]:
        """Block -> mean key of each name over its contexts: (names, inner)."""
        traced = self._trace(text_model, told.names, told.contexts, layers, template, device)
        shape = (len(told.names), len(told.contexts), -1)
        return {layer: keys.reshape(shape).mean(1) for layer, keys in traced.keys.items()}


def solve(keys: Tensor, residuals: Tensor, free: Tensor, before: Any, ridge: float) -> Tensor:
    """X (inner, hidden) of (P (K K^T + C) + ridge I) X = P K R^T, for keys K^T (n, inner) and residuals R^T (n, hidden).

    P = free free^T; C = sum of k k^T over `before`, a list of keys (some, inner). With F the columns of K and of C's keys,
    (P F F^T + ridge I) P F = P F (F^T P F + ridge I), so X = P F (F^T P F + ridge I)^-1 E R^T, E choosing the columns of K.
    """
    every = torch.cat([keys, *before])
    projected = (every @ free) @ free.t()
    system = (every @ projected.t()).cpu().double()  # as small as the subjects are few
    system.diagonal().add_(ridge)
    chosen = torch.eye(len(every), len(keys), dtype=torch.float64)
    weights = torch.linalg.solve(system, chosen).to(projected)
    return projected.t() @ (weights @ residuals)
