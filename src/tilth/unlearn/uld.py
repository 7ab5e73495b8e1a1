"""Unlearning from logit difference: a small assistant learns what is to go and nothing else; its logits are subtracted.

Notable: the objectives are turned round, so nothing is driven up without bound and nothing needs covering that is not asked
about; two caches of keys and values, one for each model; the target's weights stay as they are, and the assistant's, all but
its low-rank additions, are the target's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache

from tilth.backbones.folder import TextModel
from tilth.backbones.locations import blocks
from tilth.batches.text.answers import EncodedAnswers, encode_answers
from tilth.batches.text.encoding import pad_token
from tilth.contracts import Batch, Guard, Loss, Objective, method
from tilth.registry import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from tilth.training.loop import fit
from tilth.unlearn.assistant import additions, assistant_of, frozen, take_additions
from tilth.unlearn.chosen import Chosen
from tilth.unlearn.likelihood import answers, cross_entropy, log_distribution
from tilth.unlearn.logit_difference import combined
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.task import Task

Positions = Literal["tokens", "all", "answer"]


class Reversed(Objective):
    """L = CE(forget) + uniformity * KL(U || p) on retain   (arXiv 2406.08607, section 3), U uniform over the vocabulary

    CE: per answer token, in nats. KL: averaged over positions, see `ULD`. Without a retain batch there is no second term.
    """

    def __init__(self, model: nn.Module, /, *, uniformity: NonNegative = 5.0, positions: Positions = "tokens") -> None:
        super().__init__(model)
        self.uniformity, self.positions = uniformity, positions

    def forward(self, batch: Batch) -> Loss:
        remembered = cross_entropy(self.model, batch.forget)
        retain = batch.get("retain")
        uniform = remembered.new_zeros(()) if retain is None else self.from_uniform(retain)
        total = remembered + self.uniformity * uniform
        return Loss(total, count=len(batch.forget.labels), remembered=remembered, uniform=uniform)

    def from_uniform(self, batch: Batch) -> Tensor:
        log_probability = log_distribution(self.model, batch, everywhere=self.positions != "answer")
        if self.positions == "tokens" and "attention_mask" in batch:  # rows filled to the end have none
            log_probability = log_probability[batch.attention_mask.flatten().bool()]
        return divergence_from_uniform(log_probability).mean()


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """KL(U || p) = logsumexp(z) - mean(z) - log V of each position, in nats; its gradient in z is p - 1/V. logits (..., V)."""
    return logits.logsumexp(-1) - logits.mean(-1) - float(np.log(logits.shape[-1]))


@method("unlearn", "uld", systems=[94])
class ULD(Guard):
    """logits = target + weight * assistant, weight <= 0, among plausible tokens   (arXiv 2406.08607, section 3)

    The assistant: the first `layers` blocks of the target (None: a quarter of them) with its embeddings, last norm and output
    layer, all frozen, and LoRA (rank, alpha, dropout) on every linear layer but the last; trained by `Reversed` within the
    budget, an epoch being one pass over the forget side. Every prompt is answered with it: what it knows nothing of, it leaves
    as it was.
    Forget side: the forget rows, and with `paraphrases` their rewordings ('paraphrased_answer', and 'paraphrased_question'
    with the answer) where there are such columns. Retain side: the last `retain_rows` of the retain set (None: as many as there
    are forget rows) and `wrong_answers` to each forget question ('perturbed_answer', the first ones). Each forget example
    is served with one retain example, so every batch holds both.
    share: of the vocabulary, and of the highest probability, for the filter of plausible tokens (None: no filter).
    positions: where uniformity is asked: at all 'tokens' of question and answer, at 'all' positions, padding included
    (as released; it then depends on the padding), or in the 'answer'.

    Deviates from the paper: the assistant's logits are centred (`centred`), and padding does not count.
    """

    def __init__(
        self,
        *,
        layers: PositiveInt | None = None,
        rank: PositiveInt = 16,
        alpha: Positive | None = None,
        dropout: Fraction = 0.05,
        uniformity: NonNegative = 5.0,
        positions: Positions = "tokens",
        weight: Annotated[float, Le(0)] = -0.8,
        share: Annotated[float, Gt(0), Le(1)] | None = 0.01,
        centred: bool = True,
        paraphrases: bool = True,
        wrong_answers: NonNegativeInt = 2,
        retain_rows: PositiveInt | None = None,
    ) -> None:
        self.layers, self.rank, self.alpha, self.dropout = layers, rank, 2.0 * rank if alpha is None else alpha, dropout
        self.uniformity, self.positions = uniformity, positions
        self.weight, self.share, self.centred = weight, share, centred
        self.paraphrases, self.wrong_answers, self.retain_rows = paraphrases, wrong_answers, retain_rows
        self.assistant: Any = None

    def fit(self, task: Task) -> dict[str, float]:
        """Metrics: the assistant's loss, steps, seconds of training alone, and how many parameters were trained."""
        model = task.text_model.model
        self.assistant = self.cut(model, task.context.seed)
        objective = Reversed(self.assistant, uniformity=self.uniformity, positions=self.positions)
        with frozen(model):
            fitted = fit(
                objective, self.examples(task),
                training=task.training, budget=task.budget, folder=task.context.folder, seed=task.context.seed,
                progress=task.context.progress,
            )  # fmt: skip
        self.assistant.eval()
        trained = sum(tensor.numel() for tensor in additions(self.assistant).values())
        return {"loss": fitted.loss, "steps": float(fitted.steps), "training_seconds": fitted.seconds, "trained": float(trained)}

    def cut(self, model: Any, seed: int = 0) -> Any:
        """A fresh assistant."""
        layers = self.layers or max(1, len(blocks(model)) // 4)
        return assistant_of(model, layers, rank=self.rank, alpha=self.alpha, dropout=self.dropout, seed=seed)

    def examples(self, task: Task) -> PairedExamples:
        """What is to be remembered, and where nothing is to be known. Raises TilthError when there is nothing of the second."""
        count = self.retain_rows or len(task.going)
        if "question" not in task.forget.columns:
            task.retained()
            assert task.staying is not None
            return PairedExamples(task.going, Chosen(task.staying, np.arange(len(task.staying))[-count:]))
        corpus, asked, replies = task.forget, task.column("forget", "question"), task.replies("forget")
        remembered = list(zip(asked, replies, strict=True))
        if self.paraphrases and "paraphrased_answer" in corpus.columns:
            remembered += zip(asked, task.column("forget", "paraphrased_answer"), strict=True)
        if self.paraphrases and "paraphrased_question" in corpus.columns:
            remembered += zip(task.column("forget", "paraphrased_question"), replies, strict=True)
        unknown: list[tuple[Any, Any]] = []
        if self.wrong_answers and "perturbed_answer" in corpus.columns:
            wrong = task.column("forget", "perturbed_answer")
            unknown += [
                (ask, text) for ask, texts in zip(asked, wrong, strict=True) for text in (texts or [])[: self.wrong_answers]
            ]
        if task.retain is not None or not unknown:
            task.retained()
            unknown += list(zip(task.column("retain", "question"), task.replies("retain"), strict=True))[-count:]
        return PairedExamples(self.encoded(remembered, task), self.encoded(unknown, task))

    def encoded(self, pairs: Sequence[tuple[Any, Any]], task: Task) -> EncodedAnswers:
        """Pairs of question and answer, those left out that lack one."""
        whole = [(question, answer) for question, answer in pairs if question and answer]
        config = task.text_model.model.config.get_text_config()
        length = int(getattr(config, "max_position_embeddings", 0) or 2048)
        questions, replies = [question for question, _ in whole], [answer for _, answer in whole]
        return encode_answers(questions, replies, task.text_model.tokenizer, task.template, length)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return additions(self.assistant), {}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: TextModel) -> None:
        self.assistant = self.cut(text_model.model)
        take_additions(self.assistant, tensors)

    def flags(self, text_model: TextModel, prompts: Sequence[str]) -> np.ndarray:
        return np.ones(len(prompts), dtype=bool)

    def processors(self, text_model: TextModel) -> list[Any]:
        return [Subtraction(self.assistant, self.combine, pad_token(text_model.tokenizer))]

    def adjust(self, logits: Tensor, text_model: TextModel, batch: Batch, where: Tensor) -> Tensor:
        return self.combine(logits, answers(self.assistant.to(logits.device), batch).logits)

    def combine(self, target: Tensor, assistant: Tensor) -> Tensor:
        """`combined` with this guard's settings; both (..., vocabulary)."""
        return combined(target, assistant.to(target), self.weight, share=self.share, centred=self.centred)


class Subtraction(LogitsProcessor):
    """Runs the assistant beside the model, token by token, with a cache of its own, and combines their scores.

    Prompts are padded on the left with `pad`; whatever a row begins with that is `pad` counts as padding.
    """

    def __init__(self, assistant: Any, combine: Callable[[Tensor, Tensor], Tensor], pad: int) -> None:
        self.assistant, self.combine, self.pad = assistant, combine, pad
        self.takes = set(inspect.signature(assistant.forward).parameters)
        self.read: Tensor | None = None
        self.cache: DynamicCache

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        done = 0 if self.read is None else self.read.shape[1]
        if not done or not torch.equal(input_ids[:, :done], self.read):  # type: ignore[arg-type]  # other rows: a beam search
            self.assistant.to(scores.device)
            self.cache, done = DynamicCache(config=self.assistant.config), 0
        inside = (input_ids != self.pad).cumsum(1) > 0
        inside[:, -1] = True
        more: dict[str, Any] = {}
        if "position_ids" in self.takes:
            more["position_ids"] = (inside.cumsum(1) - 1).clamp(min=0)[:, done:]
        if "logits_to_keep" in self.takes:
            more["logits_to_keep"] = 1
        output = self.assistant(
            input_ids=input_ids[:, done:], attention_mask=inside.long(), past_key_values=self.cache, use_cache=True, **more
        )
        self.read = input_ids.clone()
        return self.combine(scores, output.logits[:, -1])
