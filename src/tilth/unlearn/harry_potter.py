"""Who's Harry Potter: train a model on its own text with the predictions of one that never read it.

Notable: inputs are the original tokens, only the targets are generic; the labels are made once, before the first step, so that
a step costs what a step of ordinary fine-tuning costs; a model that knows the text too well (reinforced) shows what to avoid, a
dictionary of the text's own terms what to say instead.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilth.contracts import Batch, Loss, Objective, method
from tilth.pretrain.text.causal import Causal
from tilth.registry import Configured, Kind, NonNegative, NonNegativeInt, Positive, PositiveInt, use
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training
from tilth.unlearn.anchors import Anchors, load_anchors, mine_anchors
from tilth.unlearn.generic import ReluReference, generic_labels
from tilth.unlearn.likelihood import IGNORED, answers
from tilth.unlearn.pairs import PairedExamples, WithArrays
from tilth.unlearn.retain import RetainTerm, total
from tilth.unlearn.task import Task
from tilth.unlearn.translation import Translator

REINFORCE = Training(lr=3e-6, batch_size=8, accumulate=16)


@method("unlearn", "generic_labels", systems=[28])
class GenericLabels(Objective):
    """L = mean over answer tokens of -log p(y | original tokens before), + retain term   (arXiv 2310.02238, section 2)

    y = argmax of v_generic = v_translated - alpha * relu(v_reinforced - v_baseline), logits at the same place of the text:
    v_translated of the model as it is, on the text with anchored terms replaced; v_reinforced of a copy trained further on the
    text; v_baseline of the model as it is, on the original (relu_ref 'original') or on the translation ('translated', the
    literal reading of the paper). From a term's second occurrence in a block on, its tokens have no label, and the beginning
    of its counterpart is lowered by `lowered` nats, or labels would switch from one name to another within a block.

    anchors: terms and counterparts, or a JSON or YAML file of them (a stage does not notice when that file changes); None mines
    up to `mined` names of the forget set by `ratio`, with their titles (see anchors.mine_anchors). boundaries: match whole words only.
    labels: 'soft' learns the generic distribution instead of its likeliest token: of the `top` likeliest tokens each, of all others
    together (left out, they would be unlearnt on every text).
    reinforce, reinforce_budget: how and for how long the copy is trained. retain: none in the paper.

    batch.forget: input_ids, labels; generic, of each answer token in order: (n,) ids, or (n, top) with generic_probability.

    Deviates: the paper gives no number for the lowering; 10 is ours. Its terms are a language model's, here they are counted. A block is whatever the batches make one example.
    """

    needs = ("generic",)

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        alpha: NonNegative = 5.0,
        anchors: dict[str, str] | str | None = None,
        mined: NonNegativeInt = 200,
        ratio: Positive = 10.0,
        boundaries: bool = True,
        relu_ref: ReluReference = "original",
        lowered: NonNegative = 10.0,
        labels: Literal["hard", "soft"] = "hard",
        top: PositiveInt = 32,
        reinforce: Training = REINFORCE,
        reinforce_budget: Budget = Budget(epochs=3),
        retain: Annotated[Configured, Kind("retain")] = use("retain", "none"),
    ) -> None:
        super().__init__(model)
        self.alpha, self.relu_ref, self.lowered = alpha, relu_ref, lowered
        self.anchors, self.mined, self.ratio, self.boundaries = anchors, mined, ratio, boundaries
        self.top = top if labels == "soft" else None
        self.reinforce, self.reinforce_budget = reinforce, reinforce_budget
        self.retain: RetainTerm = retain.build()

    def prepare_from(self, task: Task) -> PairedExamples:
        """Adds the generic labels of every forget example; trains the reinforced copy in context.folder/reinforced."""
        anchors = Anchors(self.dictionary(task), boundaries=self.boundaries)
        reinforced = reinforced_copy(self.model, task, self.reinforce, self.reinforce_budget) if self.alpha else self.model
        made = generic_labels(
            self.model, reinforced, task.going, Translator(task.text_model.tokenizer, anchors), task.context,
            alpha=self.alpha, relu_ref=self.relu_ref, lowered=self.lowered, top=self.top,
            limit=int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 2**31),  # type: ignore[union-attr,operator]
        )  # fmt: skip
        known = PairedExamples(WithArrays(task.going, made), task.staying)
        return self.retain.prepare(self.model, known, task.context)

    def dictionary(self, task: Task) -> dict[str, str]:
        """Terms and counterparts, as given or mined; they are said and kept for the report."""
        if isinstance(self.anchors, str):
            terms = load_anchors(self.anchors)
        elif self.anchors is not None:
            terms = self.anchors
        elif self.mined and task.retain is not None:
            going, staying = ([*task.prompts(part), *task.replies(part)] for part in ("forget", "retain"))  # type: ignore[arg-type]
            terms = mine_anchors(going, staying, most=self.mined, ratio=self.ratio, titles=True)
        else:
            terms = {}
        if not terms:
            task.context.progress.say("generic labels: the dictionary is empty, so nothing is translated")
        task.context.exhibit(
            "table", "Anchored terms", columns=["term", "counterpart"], rows=[list(pair) for pair in terms.items()],
            note="What belongs to the text to be forgotten, and what stood in its place while labels were made.",
        )  # fmt: skip
        return terms

    def forward(self, batch: Batch) -> Loss:
        """Cross-entropy with the generic labels, hard or soft, and the retain term; labels of -100 do not count."""
        logits, _, _ = answers(self.model, batch.forget)
        generic = batch.forget.generic
        if generic.ndim == 1:
            forget = F.cross_entropy(logits, generic, ignore_index=IGNORED, reduction="sum") / (generic != IGNORED).sum().clamp(
                min=1
            )
        else:
            labelled = generic[:, 0] != IGNORED
            divergence = soft_cross_entropy(logits, generic.clamp(min=0), batch.forget.generic_probability)
            forget = divergence[labelled].sum() / labelled.sum().clamp(min=1)
        return total(forget, self.retain, self.model, batch)


def soft_cross_entropy(logits: Tensor, ids: Tensor, probability: Tensor) -> Tensor:
    """-sum p log q over `ids` and, as one more outcome, all other ids together, in nats: (n,).

    logits (n, vocabulary), of q; ids, probability (n, top): p, which sums to 1 or less.
    """
    every = logits.logsumexp(-1)
    chosen = (probability * (logits.gather(1, ids) - every[:, None])).sum(1)
    if ids.shape[1] == logits.shape[1]:
        return -chosen
    others = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - every
    return -chosen - (1 - probability.sum(1)).clamp(min=0) * others


def reinforced_copy(model: nn.Module, task: Task, training: Training, budget: Budget) -> nn.Module:
    """A copy of `model` trained further on the forget set, in eval mode and without gradients."""
    copy = deepcopy(model)
    fit(
        Causal(copy), task.going,
        training=training, budget=budget, folder=task.context.folder / "reinforced", seed=task.context.seed,
        progress=task.context.progress,
    )  # fmt: skip
    return copy.eval().requires_grad_(False)
