"""Take a forget set out of a model, by whichever shape of method: the one entrance for command line, recipes and Python.

Notable: whatever must be known before the first step (a reference, a Fisher matrix, a dictionary of labels) is made by
the objective's own `prepare`, called once here with the model as it is; `fit` then knows nothing of unlearning.
"""

import time
from typing import Protocol, runtime_checkable

from tilth.backbones.folder import TextModel
from tilth.context import Context
from tilth.contracts import Configured, Edit, Examples, Objective
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.training.loop import Fitted, fit
from tilth.training.settings import Budget, Training
from tilth.unlearn.checks import check_answers, check_known, check_sets
from tilth.unlearn.pairs import PairedExamples


@runtime_checkable
class Prepares(Protocol):
    """An objective with something to compute before the first step."""

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        """The same examples with what the objective `needs` in their batches; `model` is still the one before."""
        ...


def forget(
    text_model: TextModel,
    forget: Corpus,
    retain: Corpus | None,
    *,
    method: Configured,
    batches: Configured,
    training: Training,
    budget: Budget,
    context: Context,
) -> Fitted:
    """Change `text_model` so that it no longer knows `forget`, and still knows `retain`; logs and checkpoints lie in context.folder.

    An epoch of the budget is one pass over the forget set; each forget example is served with one random retain example.
    Raises TilthError when the sets are empty or overlap, or when an answer to forget is empty.
    """
    if getattr(text_model.model.config, "is_encoder_decoder", False):
        raise TilthError("unlearning works on causal language models, and this one is an encoder-decoder")
    check_sets(forget, retain)
    check_known(forget, text_model.about, context)
    encode = batches.build()
    going: Examples = encode.build(forget, text_model.tokenizer, context)
    check_answers(forget, going)
    staying: Examples | None = encode.build(retain, text_model.tokenizer, context) if retain is not None else None
    if len(going) == 1:
        context.progress.say("the forget set holds one example: every batch repeats it")
    if issubclass(method.cls, Edit):
        return _edit(text_model, going, staying, method, context)
    if not issubclass(method.cls, Objective):
        raise TilthError(f"the unlearning method '{method.name}' is neither an objective nor an edit")
    objective: Objective = method.build(text_model.model)
    examples = PairedExamples(going, staying)
    if staying is None:
        context.progress.say(f"{method.name}: there is no retain set, so nothing holds the rest of the model in place")
    if isinstance(objective, Prepares):
        examples = objective.prepare(examples, context)
    return fit(
        objective, examples,
        training=training, budget=budget, folder=context.folder, seed=context.seed, progress=context.progress,
    )  # fmt: skip


def _edit(text_model: TextModel, forget: Examples, retain: Examples | None, method: Configured, context: Context) -> Fitted:
    """Apply an edit; nothing is trained, so there are no steps, no log and a loss of 0."""
    began = time.perf_counter()
    text_model.model = method.build()(text_model.model, forget, retain)
    seconds = time.perf_counter() - began
    return Fitted(steps=0, tokens=0, samples=len(forget), seconds=seconds, loss=0.0, log=context.folder / "log.jsonl")
