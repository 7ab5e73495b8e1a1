"""Learn from unlabelled data: from nothing, or going on from a model that exists."""

from typing import Annotated, Any

import numpy as np
from transformers import AutoTokenizer

from tilth.backbones.folder import TextModel, load, save
from tilth.batches.balanced import Balanced
from tilth.batches.images.sheet import sheet
from tilth.context import Context
from tilth.contracts import (
    Configured,
    CorpusRef,
    Examples,
    Kind,
    ModelRef,
    Noise,
    Objective,
    Stage,
    TokenizerRef,
    method,
    use,
)  # fmt: skip
from tilth.errors import TilthError
from tilth.registry import PositiveInt, plain
from tilth.training.loop import Evaluation, fit
from tilth.training.settings import Budget, Training

_SHOWN = 6  # examples whose pictures a report shows


@method("stage", "pretrain")
class Pretrain(Stage):
    """data: what to learn from. start: a model to go on from, or `backbone` and `tokenizer` for a fresh one.

    objective: what is learnt; batches: how rows become tensors; held_out: data whose loss is logged while training,
    `evaluate_every` steps (ten times without), over `evaluate_examples` of its examples.
    """

    gives = "model"
    trains = True

    def __init__(
        self,
        *,
        data: CorpusRef,
        budget: Budget,
        objective: Annotated[Configured, Kind("pretrain")] = use("pretrain", "causal"),
        batches: Annotated[Configured, Kind("batches")] = use("batches", "packed"),
        backbone: Annotated[Configured, Kind("backbone")] | None = None,
        tokenizer: TokenizerRef | None = None,
        start: ModelRef | None = None,
        held_out: CorpusRef | None = None,
        evaluate_every: PositiveInt | None = None,
        evaluate_examples: PositiveInt | None = 256,
        training: Training = Training(),
    ) -> None:
        self.data, self.budget, self.objective, self.batches, self.training = data, budget, objective, batches, training
        self.backbone, self.tokenizer, self.start = backbone, tokenizer, start
        self.held_out, self.evaluate_every, self.evaluate_examples = held_out, evaluate_every, evaluate_examples
        if start and (backbone or tokenizer):
            raise TilthError(
                "'start' brings its own network and tokeniser", hint="Leave out 'backbone' and 'tokenizer', or 'start'."
            )
        if not start and not (backbone and (tokenizer or not backbone.cls.tokenised)):  # type: ignore[attr-defined]
            raise TilthError(
                "a fresh model needs 'backbone' and 'tokenizer'", hint="Or name a model to go on from under 'start'."
            )

    def run(self, context: Context) -> dict[str, float]:
        """Write 'model/'; metrics: last loss, steps, tokens, tokens per second."""
        import torch

        torch.manual_seed(context.seed)
        text_model = self.model(context)
        return self.train(context, text_model, self.examples(context, text_model.tokenizer))

    def train(self, context: Context, text_model: TextModel, examples: Examples) -> dict[str, float]:
        """The training itself, of a model as it is before the first step."""
        evaluation, shown = None, examples
        objective: Objective = self.objective.build(text_model.model)
        if self.held_out:
            made = self.batches.build()
            as_they_are = made.of.build() if isinstance(made, Balanced) else made
            held_out = shown = as_they_are.build(context.corpus(self.held_out), text_model.tokenizer, context)
            evaluation = Evaluation(held_out, self.evaluate_every, self.evaluate_examples)
        fitted = fit(
            objective, examples,
            training=self.training, budget=self.budget, folder=context.folder, seed=context.seed,
            evaluation=evaluation, progress=context.progress,
        )  # fmt: skip
        if context.first:
            indices = np.linspace(0, len(shown) - 1, min(_SHOWN, len(shown))).astype(np.int64)
            if rows := objective.pictures(shown.batch(indices, Noise(context.seed, indices)).to(text_model.model.device)):
                title, legend = objective.shows
                context.exhibit("picture", title, png=sheet([[part.cpu().numpy() for part in row] for row in rows]), note=legend)
            kept: Any = objective.kept
            save(kept, text_model.tokenizer, context.folder / "model", self.about(context, text_model))
        return {
            "loss": fitted.loss,
            "steps": float(fitted.steps),
            "tokens": float(fitted.tokens),
            "tokens_per_second": fitted.tokens / max(fitted.seconds, 1e-9),
            "parameters": float(sum(p.numel() for p in text_model.model.parameters())),
        }

    def model(self, context: Context) -> TextModel:
        """The network before the first step."""
        if self.start:
            return load(context.model(self.start))
        assert self.backbone
        if not self.backbone.cls.tokenised:  # type: ignore[attr-defined]
            sample = getattr(self.examples(context, None), "sample", None)
            return TextModel(self.backbone.build().build(sample), None, {})
        tokenizer = AutoTokenizer.from_pretrained(context.tokenizer(self.tokenizer)) if self.tokenizer else None
        return TextModel(self.backbone.build().build(tokenizer), tokenizer, {})

    def examples(self, context: Context, tokenizer: Any) -> Examples:
        """What is trained on, as numbered examples (lineage is computed from these)."""
        return self.batches.build().build(context.corpus(self.data), tokenizer, context)

    def about(self, context: Context, text_model: TextModel) -> dict[str, Any]:
        """What tilth.json will say: what it was trained on and how, what came before, and the prompt's form."""
        trained = {
            "data": context.corpus(self.data).fingerprint,
            "stage": plain(use("stage", "pretrain", **vars(self)))["pretrain"],
        }
        about: dict[str, Any] = {"history": [*text_model.about.get("history", []), trained]}
        template = self.batches.settings.get("template", text_model.about.get("template"))
        return {**about, "template": plain(template)} if template else about
