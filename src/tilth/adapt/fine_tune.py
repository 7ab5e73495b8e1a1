"""Fine-tuning for classification: the whole model learns, with a new head where its language-model head was."""

from __future__ import annotations

import copy
from typing import Annotated, Any

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tilth.backbones.classifier import with_head
from tilth.backbones.folder import TextModel
from tilth.batches.images.pictures import natural
from tilth.contracts import Batch, Configured, Kind, Loss, Objective, method, use
from tilth.errors import TilthError
from tilth.registry import Fraction


@method("adapt", "fine_tune")
class FineTune(Objective):
    """L = mean over examples of -log p(class | text or picture).

    label_smoothing: share of the target spread evenly over all classes. views: augmentation of pictures while training.
    batch: input_ids, attention_mask (batch, tokens), or pixel_values and keys; labels (batch,): index of the class
    """

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        label_smoothing: Fraction = 0.0,
        views: Annotated[Configured, Kind("views")] = use("views", "mae"),
    ) -> None:
        super().__init__(model)
        self.label_smoothing, self.views = label_smoothing, views.build()

    def forward(self, batch: Batch) -> Loss:
        if "pixel_values" in batch:
            logits = self.model(augmented(self, self.views, batch)).logits
        else:
            logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = nn.functional.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)
        return Loss(loss, count=len(batch.labels), accuracy=(logits.argmax(1) == batch.labels).float().mean())


@method("adapt", "attentive_probe", systems=[88])
class AttentiveProbe(Objective):
    """L = mean over pictures of -log p(class | picture), learnt by a query that attends to frozen tokens, and a linear layer.

    views: augmentation while training. batch: pixel_values, keys; labels (batch,)
    """

    pool = "attention"

    def __init__(self, model: nn.Module, /, *, views: Annotated[Configured, Kind("views")] = use("views", "none")) -> None:
        super().__init__(model)
        self.views = views.build()
        model.encoder.requires_grad_(False)  # type: ignore[union-attr, operator]

    def train(self, mode: bool = True) -> AttentiveProbe:
        super().train(mode)
        self.model.encoder.eval()  # type: ignore[union-attr, operator]
        return self

    def forward(self, batch: Batch) -> Loss:
        logits = self.model(augmented(self, self.views, batch)).logits
        loss = nn.functional.cross_entropy(logits.float(), batch.labels)
        return Loss(loss, count=len(batch.labels), accuracy=(logits.argmax(1) == batch.labels).float().mean())


def augmented(objective: nn.Module, views: Any, batch: Batch) -> Tensor:
    """The pictures of a batch as floats, augmented while training."""
    pixels = natural(batch.pixel_values)
    return views(pixels, batch["keys"])[0] if objective.training else pixels  # type: ignore[no-any-return]


def classifier(text_model: TextModel, classes: list[str], pool: str = "encoder") -> PreTrainedModel:
    """The model's network under a fresh classification head, drawn from torch's generator; the weights are copied.

    Of language models transformers' own class, of encoders of pictures a `PictureClassifier`, pooling as `pool` says. Raises
    TilthError when transformers has no such class for this network.
    """
    if text_model.tokenizer is None:
        made = with_head(copy.deepcopy(text_model.model), len(classes), pool)
        made.config.id2label, made.config.label2id = dict(enumerate(classes)), {n: i for i, n in enumerate(classes)}
        return made
    old = text_model.model
    config = copy.deepcopy(old.config)
    config.num_labels = len(classes)
    config.id2label, config.label2id = dict(enumerate(classes)), {name: index for index, name in enumerate(classes)}
    config.problem_type, config.architectures = "single_label_classification", None
    tokenizer = text_model.tokenizer
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    try:
        new: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise TilthError(
            f"transformers has no classifier for a {config.model_type} network", hint="Use linear_probe or knn on its features."
        ) from None
    missing, _ = new.base_model.load_state_dict(old.base_model.state_dict(), strict=False)
    lost = [name for name in missing if "pooler" not in name]  # a pooler belongs to the head: language models have none
    if lost:
        raise RuntimeError(f"the classifier's network does not fit the language model's: {lost[0]} has no counterpart")
    new.to(dtype=old.dtype)  # type: ignore[call-arg]
    return new
