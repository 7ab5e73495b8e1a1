"""Fine-tuning for classification: the whole model learns, with a new head where its language-model head was."""

import copy

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tilth.backbones.folder import TextModel
from tilth.contracts import Batch, Loss, Objective, method
from tilth.errors import TilthError
from tilth.registry import Fraction


@method("adapt", "fine_tune")
class FineTune(Objective):
    """L = mean over examples of -log p(class | text).

    label_smoothing: share of the target spread evenly over all classes.
    batch: input_ids, attention_mask (batch, tokens); labels (batch,): index of the class
    """

    def __init__(self, model: nn.Module, /, *, label_smoothing: Fraction = 0.0) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> Loss:
        logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = nn.functional.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)
        return Loss(loss, count=len(batch.labels), accuracy=(logits.argmax(1) == batch.labels).float().mean())


def classifier(text_model: TextModel, classes: list[str]) -> PreTrainedModel:
    """The model's network under a fresh classification head of transformers' own class; draws the head from torch's generator.

    Raises TilthError when transformers has no such class for this network. The weights are copied.
    """
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
