"""The quantisation attack: does rounding the weights to fewer bits bring back what was unlearned?

Notable: rounding needs neither data nor training, so anybody who holds the weights can do it; a change of weights smaller than
half a step of the grid is rounded away, and how many weights land in another bucket than before says how much is left of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tilth.backbones.folder import TextModel, load
from tilth.backbones.locations import linear_names
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import template_of
from tilth.evaluate.rows import content_rows, is_asked, score_rows
from tilth.registry import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Rounded:
    """codes: integer bucket of every weight, as the weight is shaped; step: size of a bucket, broadcast to the same shape."""

    codes: Tensor
    step: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight the codes stand for."""
        return self.codes * self.step


def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Rounded:
    """code = round(w / step), step = max |w| / (2^(bits - 1) - 1), one step per output channel, or per `group` inputs of one.

    weight: (outputs, inputs). arXiv 2410.16454, section 3, divides by 2^(bits - 1), which leaves the largest weight without a
    code in a signed integer of `bits` bits; ours is what symmetric integer kernels store. A channel of zeros keeps its zeros.
    """
    outputs, inputs = weight.shape
    width = inputs if group is None else min(group, inputs)
    short = -inputs % width
    padded = torch.nn.functional.pad(weight.float(), (0, short)).reshape(outputs, -1, width)
    step = padded.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    codes = (padded / step).round().reshape(outputs, -1)[:, :inputs]
    return Rounded(codes, step.expand_as(padded).reshape(outputs, -1)[:, :inputs])


def rounded_weights(model: nn.Module, bits: int, group: int | None = None) -> dict[str, Rounded]:
    """What becomes of every linear module's weight but the output layer's, as (outputs, inputs), by the module's name."""
    modules = dict(model.named_modules())
    return {name: round_to_nearest(matrix(modules[name]), bits, group) for name in linear_names(model)}


@torch.no_grad()
def quantise(model: nn.Module, bits: int, group: int | None = None) -> None:
    """Round the model's weights in place: they keep their precision and take only values that the codes can stand for."""
    modules = dict(model.named_modules())
    for name, rounded in rounded_weights(model, bits, group).items():
        matrix(modules[name]).copy_(rounded.weight)


def changed_share(model: nn.Module, before: nn.Module, bits: int, group: int | None = None) -> float:
    """Share of the rounded weights whose bucket is another than in `before`, each model rounded by itself."""
    now, then = rounded_weights(model, bits, group), rounded_weights(before, bits, group)
    if {name: one.codes.shape for name, one in now.items()} != {name: one.codes.shape for name, one in then.items()}:
        raise TilthError("the model and the one before are not built alike, so their weights cannot be compared")
    changed = sum(int((one.codes != then[name].codes.to(one.codes.device)).sum()) for name, one in now.items())
    return changed / sum(one.codes.numel() for one in now.values())


def matrix(module: nn.Module) -> Tensor:
    """The weight of a linear module as (outputs, inputs): a view of it."""
    weight: Tensor = module.weight.data  # type: ignore[union-attr,assignment]
    return weight.t() if isinstance(module, Conv1D) else weight


@method("benchmark", "quantisation")
class Quantisation(Benchmark):
    """Round the weights to nearest at each of `bits` and measure again   (arXiv 2410.16454, section 3)

    `forget_probability`, mean P^(1/n) of what was to be forgotten, and `forget_probability_<bits>_bits`; `forget_rouge...`, ROUGE-L
    recall of the greedy answers to `ask` questions; `forget_exact_memorisation...`; `retain_probability...` if there is a retain set.
    With before, `changed_<bits>_bits`: share of weights in another bucket than before unlearning (0: all of it is rounded away),
    and `forget_kept...`: forget_probability over that of the model before, at full precision (the share of knowledge that is
    left; the paper reports 21 % and, at 4 bits, 83 %).

    All linear modules but the output layer are rounded, one grid per output channel, or per `group` inputs of it. Weights that
    are no matrices of such modules (experts kept as one tensor) stay as they are. No guard acts: whoever rounds drops it.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef | None = None,
        before: ModelRef | None = None,
        bits: tuple[PositiveInt, ...] = (8, 4),
        group: PositiveInt | None = None,
        ask: NonNegativeInt = 64,
        limit: PositiveInt | None = None,
        max_new_tokens: PositiveInt = 128,
        template: Template | None = None,
        column: str = "text",
    ) -> None:
        if not bits or min(bits) < 2:
            raise TilthError(
                f"the bits {list(bits)} must be 2 or more", where="benchmark.quantisation.bits", hint="Write [8, 4]."
            )
        self.sets, self.before, self.bits, self.group = {"forget": forget, "retain": retain}, before, bits, group
        self.ask, self.limit, self.max_new_tokens, self.template, self.column = ask, limit, max_new_tokens, template, column

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when a set has nothing to score, or the model before is built otherwise."""
        text_model = load(model)
        text_model.guard = None
        before = load(context.model(self.before)) if self.before is not None else None
        found: dict[str, float] = {}
        details: dict[str, list[Any]] = {}
        for bits in (None, *self.bits):
            ending = "" if bits is None else f"_{bits}_bits"
            network = text_model.model
            if bits is not None:
                if before is not None:
                    found[f"changed{ending}"] = changed_share(network, before.model, bits, self.group)
                network = copy.deepcopy(network)
                quantise(network, bits, self.group)
            self.measure(TextModel(network, text_model.tokenizer, text_model.about), ending, found, details, context)
        if before is not None:
            before.guard = None
            then: dict[str, float] = {}
            self.measure(before, "", then, {}, context)
            for ending in ("", *(f"_{bits}_bits" for bits in self.bits)):
                found[f"forget_kept{ending}"] = found[f"forget_probability{ending}"] / max(then["forget_probability"], 1e-12)
        self.exhibit(found, context)
        return Scores(found, details)

    def measure(
        self, text_model: TextModel, ending: str, found: dict[str, float], details: dict[str, list[Any]], context: Context
    ) -> None:
        """Adds the figures of one precision to `found` and the forget set's per-row values to `details`."""
        for name, data in self.sets.items():
            if data is None:
                continue
            rows = content_rows(context.corpus(data), self.limit, self.column)
            scored = score_rows(text_model, rows, self.template, context, column=self.column)
            probability = metrics.answer_probability(scored.statistics.average)
            found[f"{name}_probability{ending}"] = float(probability.mean())
            if name != "forget":
                continue
            memorised = metrics.exact_memorisation(scored.hits, scored.starts)
            found[f"forget_exact_memorisation{ending}"] = float(memorised.mean())
            details["id"] = rows["id"]
            details[f"probability{ending}"], details[f"exact_memorisation{ending}"] = probability.tolist(), memorised.tolist()
            if self.ask and is_asked(list(rows)):
                asked = np.unique(np.linspace(0, len(rows["id"]) - 1, min(self.ask, len(rows["id"]))).astype(int)).tolist()
                prompts = template_of(text_model, self.template).prompts([rows["question"][row] for row in asked])
                made = generate(text_model, prompts, self.max_new_tokens, progress=context.progress)
                recall = metrics.rouge_l(made, [rows["answer"][row] for row in asked])[0]
                found[f"forget_rouge{ending}"] = float(recall.mean())

    def exhibit(self, found: dict[str, float], context: Context) -> None:
        """One row per precision."""
        kinds = [name for name in found if not name.endswith("_bits")]
        kinds += ["changed"] if self.before is not None else []
        lines = [
            ["as it is" if not ending else ending[1:].replace("_", " "), *(found.get(f"{kind}{ending}") for kind in kinds)]
            for ending in ("", *(f"_{bits}_bits" for bits in self.bits))
        ]
        context.exhibit(
            "table",
            "Quantisation",
            columns=["weights", *(kind.replace("_", " ") for kind in kinds)],
            rows=lines,
            note="What rises on the forget set when the weights are rounded was hidden, not removed.",
        )
