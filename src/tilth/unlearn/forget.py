"""Take a forget set out of a model, by whichever shape of method: the one entrance for command line, recipes and Python.

Notable: whatever must be known before the first step (a reference, a Fisher matrix, a dictionary of labels) is made by
the objective's own `prepare`, called once here with the model as it is; `fit` then knows nothing of unlearning.
"""

import time
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import nn

from tilth.backbones.folder import TextModel, load
from tilth.context import Context
from tilth.contracts import Configured, Edit, Examples, Guard, Objective, Reparametrisation
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.training.loop import Fitted, fit
from tilth.training.parallel import world
from tilth.training.settings import Budget, Training
from tilth.unlearn.checks import check_answers, check_known, check_learnt, check_sets
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.task import Task

_ON_WEIGHTS = {  # by name, as nothing else about them says it before they are built
    "generic_labels": "trains the weights of a copy",
    "generic_logits": "trains the weights of a copy",
}


@runtime_checkable
class Prepares(Protocol):
    """An objective with something to compute before the first step."""

    def prepare(self, examples: PairedExamples, context: Context) -> PairedExamples:
        """The same examples with what the objective `needs` in their batches; `model` is still the one before."""
        ...


@runtime_checkable
class PreparesFromTask(Protocol):
    """An objective that must see more than encoded examples before the first step: the texts, the tokeniser, the settings."""

    def prepare_from(self, task: Task) -> PairedExamples:
        """The task's examples with what the objective `needs` in their batches."""
        ...


@runtime_checkable
class Reports(Protocol):
    """An objective that watched something while it trained."""

    def metrics(self) -> dict[str, float]:
        """Called once, after the last step."""
        ...


@runtime_checkable
class PreparesAdapter(Protocol):
    """An adapter that starts from what the examples say (Fisher information, say)."""

    def prepare(self, model: nn.Module, examples: PairedExamples, context: Context) -> None:
        """Called once, after `apply` and before the first step; the model's outputs stay what they are."""
        ...


@runtime_checkable
class FoldsElsewhere(Protocol):
    """An adapter that adds to weights without having changed them, and can so add to others than those it was trained over."""

    def fold_into(self, module: nn.Module, whole: nn.Module) -> None:
        """Add what was learnt in `module` to the weights of `whole`, in place."""
        ...


def check_eight_bit(method: Configured, adapter: Configured | None) -> None:
    """Raise TilthError if `method` cannot work on a model in 8 bit: its weights can be read, not trained or written."""
    if issubclass(method.cls, Edit):
        raise TilthError(
            f"'{method.name}' writes into the weights, and those of a model in 8 bit are rounded", hint="Use 'load: as_saved'."
        )
    if method.name in _ON_WEIGHTS:
        raise TilthError(
            f"'{method.name}' {_ON_WEIGHTS[method.name]}, and those of a model in 8 bit are frozen", hint="Use 'load: as_saved'."
        )
    if issubclass(method.cls, Objective) and adapter is None:
        raise TilthError(
            f"a model in 8 bit trains only through an adapter, and '{method.name}' has none", hint="Set 'adapter: lora'."
        )
    if adapter is not None and not issubclass(adapter.cls, FoldsElsewhere):
        raise TilthError(
            f"the adapter '{adapter.name}' changes the weights below it, and those of a model in 8 bit cannot be",
            hint="Use 'adapter: lora'.",
        )


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
    adapter: Configured | None = None,
) -> Fitted:
    """Change `text_model` so that it no longer knows `forget`, and still knows `retain`; logs and checkpoints lie in context.folder.

    An epoch of the budget is one pass over the forget set; each forget example is served with one random retain example.
    adapter: how the weights are expressed while an objective trains (LoRA and the like); folded back before this returns.
    A model in 8 bit is replaced by the one it was read from, with what was learnt added: rounding is not kept.
    Raises TilthError when the sets are empty or overlap, when an answer to forget is empty, or (`check_eight_bit`) when the method
    cannot work on a model in 8 bit.
    """
    if text_model.as_saved is not None:
        check_eight_bit(method, adapter)
        if world().size > 1:
            raise TilthError(
                "a model in 8 bit is trained by one process", hint="Run it without torchrun, or use 'load: as_saved'."
            )
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
    task = Task(text_model, forget, retain, going, staying, training, budget, context)
    check_learnt(text_model.model, going, staying, context)
    if issubclass(method.cls, (Edit, Guard)):
        if adapter is not None:
            raise TilthError(
                f"'{method.name}' trains no weights of the model, so 'adapter' has nothing to do", hint="Leave it out."
            )
        fitted = _without_loop(task, method)
        if text_model.as_saved is not None:
            _put_back(text_model, None)
        return fitted
    if not issubclass(method.cls, Objective):
        raise TilthError(f"the unlearning method '{method.name}' is neither an objective nor an edit nor a guard")
    trainable = [parameter for parameter in text_model.model.parameters() if parameter.requires_grad]
    objective: Objective = method.build(text_model.model)
    if staying is None:
        context.progress.say(f"{method.name}: there is no retain set, so nothing holds the rest of the model in place")
    examples = prepared(objective, task)
    low_rank: Reparametrisation | None = adapter.build() if adapter is not None else None
    if low_rank is not None:
        low_rank.apply(text_model.model)
        if isinstance(low_rank, PreparesAdapter):
            low_rank.prepare(text_model.model, examples, context)
    fitted = fit(
        objective, examples,
        training=training, budget=budget, folder=context.folder, seed=context.seed, progress=context.progress,
    )  # fmt: skip
    if text_model.as_saved is not None:
        assert isinstance(low_rank, FoldsElsewhere)
        _put_back(text_model, low_rank)
    elif low_rank is not None:
        low_rank.fold(text_model.model)
    for parameter in trainable:  # an objective may have trained a part of them only
        parameter.requires_grad_(True)
    return replace(fitted, metrics=objective.metrics()) if isinstance(objective, Reports) else fitted


def prepared(objective: Objective, task: Task) -> PairedExamples:
    """The task's examples, paired, with everything in their batches that the objective computes before the first step."""
    if isinstance(objective, PreparesFromTask):
        return objective.prepare_from(task)
    examples = PairedExamples(task.going, task.staying)
    return objective.prepare(examples, task.context) if isinstance(objective, Prepares) else examples


def _put_back(text_model: TextModel, low_rank: FoldsElsewhere | None) -> None:
    """Set the model with the weights it was saved with in the place of the one in 8 bit, what was learnt added to them."""
    assert text_model.as_saved is not None
    whole = load(text_model.as_saved).model
    if low_rank is not None:
        low_rank.fold_into(text_model.model, whole)
    text_model.model, text_model.as_saved = whole, None
    if text_model.guard is not None:  # it may be made of parts of the model
        tensors, facts = text_model.guard.state()
        text_model.guard.restore({name: tensor.detach().cpu() for name, tensor in tensors.items()}, facts, text_model)


def _without_loop(task: Task, method: Configured) -> Fitted:
    """Apply an edit, or fit a guard and set it before the model; the loop does not run, so there are no steps and no loss."""
    began = time.perf_counter()
    made = method.build()
    if isinstance(made, Guard):
        if task.text_model.guard is not None:
            raise TilthError(
                f"the model already has a guard, '{task.text_model.guard.name}'",
                hint="Start from the model without it, with one forget set that holds everything to be guarded.",
            )
        made.configured = method
        metrics = made.fit(task)
        task.text_model.guard = made
    else:
        metrics = made(task)
    seconds = time.perf_counter() - began
    return Fitted(
        steps=0,
        tokens=0,
        samples=len(task.going),
        seconds=seconds,
        loss=0.0,
        log=task.context.folder / "log.jsonl",
        metrics=metrics,
    )
