"""Forget entities by teaching a language model its own answers without the words that carry them.

Notable: which words these are is the model's own account (integrated gradients of its own answers); they are written into
`tilth.json`, so that a benchmark, or a person, can look for them afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import nn

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import TextModel
from tilth.batches.text.answers import encode_answers
from tilth.batches.text.encoding import Encoder, end_token, pad_token
from tilth.contracts import Batch, Loss, Objective, method
from tilth.registry import Configured, Kind, PositiveInt, use
from tilth.unlearn.concept_words import WORD, entity_names, masked, merged, pattern, ranked, shares
from tilth.unlearn.entities import entity_words
from tilth.unlearn.integrated_gradients import answer_attributions
from tilth.unlearn.likelihood import cross_entropy
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.prompts import prompt_batches
from tilth.unlearn.refusals import REFUSALS, answered, encode_replies
from tilth.unlearn.retain import RetainTerm, total
from tilth.unlearn.task import Task

_TOGETHER = 16  # answers whose gradients are taken at once
_NAME = 4  # letters of the shortest word that counts as a name


@method("unlearn", "concept_masking", systems=[35])
class ConceptMasking(Objective):
    """L = CE(poisoned answer | question) + retain term, averaged over answer tokens   (arXiv 2405.15662, on language models)

    `prepare_from` asks the model the questions to forget, ranks the words of its answers by integrated gradients (positive
    parts, each answer's divided by their sum, summed over an entity's answers) and poisons the answers at them.
    top: words per entity. entity: the column that tells entities apart, or how many rows in a row are about one (20 in TOFU);
    None: the forget set is one.
    names: the words that only the entity's questions hold, of at least four letters, go too.
    poison: 'mask' puts `mask` in a word's place, 'substitute' a word of an answer that is retained, 'refuse' a refusal in the
    answer's. answers: the model's 'own', or those of the data ('gold'), which also stand in for empty ones.
    choose: 'attribution', or 'random' words of the same answers for comparison. points: of the gradients' path.
    stop_words: never chosen; None: scikit-learn's English list. max_new_tokens: of an own answer.

    Deviates: how long it trains is the budget's affair, not decided by what the model still says.
    batch.forget: input_ids, labels (batch, tokens) of question and poisoned answer; batch.retain: input_ids, labels
    """

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        top: PositiveInt = 5,
        entity: str | PositiveInt | None = None,
        names: bool = True,
        poison: Literal["mask", "substitute", "refuse"] = "mask",
        mask: str = "***",
        answers: Literal["own", "gold"] = "own",
        choose: Literal["attribution", "random"] = "attribution",
        points: PositiveInt = 32,
        stop_words: list[str] | None = None,
        max_new_tokens: PositiveInt = 64,
        retain: Annotated[Configured, Kind("retain")] = use("retain", "cross_entropy"),
    ) -> None:
        super().__init__(model)
        self.top, self.entity, self.names, self.poison, self.mask = top, entity, names, poison, mask
        self.answers, self.choose, self.points, self.max_new_tokens = answers, choose, points, max_new_tokens
        self.stop_words = frozenset(ENGLISH_STOP_WORDS if stop_words is None else map(str.lower, stop_words))
        self.retain: RetainTerm = retain.build()

    def prepare_from(self, task: Task) -> PairedExamples:
        """Poisoned answers in place of the forget set's; `about` of the model receives 'concept_words'."""
        questions, gold = task.column("forget", "question"), task.column("forget", "answer")
        answers = own_answers(task.text_model, task.prompts("forget"), self.max_new_tokens) if self.answers == "own" else gold
        answers = [own.strip() if WORD.search(own) else right for own, right in zip(answers, gold, strict=True)]
        named = task.column("forget", self.entity) if isinstance(self.entity, str) else None
        entities = entity_names(len(answers), self.entity if isinstance(self.entity, int) else None, named)
        scores = word_shares(task.text_model, questions, answers, task, self.points)
        going: dict[str, list[str]] = {}
        found: dict[str, dict[str, list[str]]] = {}
        for entity in sorted(set(entities)):
            rows = [row for row, name in enumerate(entities) if name == entity]
            order = ranked([scores[row] for row in rows], self.stop_words)
            chosen = order[: self.top]
            if self.choose == "random":
                drawn = np.random.default_rng(task.context.seed).permutation(len(order) - len(chosen))[: self.top]
                chosen = [order[self.top + number] for number in drawn.tolist()]
            going[entity] = sorted({*chosen, *(self.names_of([questions[row] for row in rows], task) if self.names else ())})
            found[entity] = {"influential": order[: self.top], "poisoned": going[entity]}
        task.text_model.about["concept_words"] = found
        shown = [[entity, ", ".join(words["influential"]), ", ".join(words["poisoned"])] for entity, words in found.items()]
        task.context.exhibit("table", "Words of the entities", columns=["entity", "influential", "poisoned"], rows=shown)
        poisoned = self.poisoned(answers, [going[entity] for entity in entities], task)
        replies = encode_replies(poisoned, task.text_model.tokenizer, task.template)
        return self.retain.prepare(self.model, PairedExamples(answered(task, replies), task.staying), task.context)

    def forward(self, batch: Batch) -> Loss:
        return total(cross_entropy(self.model, batch.forget), self.retain, self.model, batch)

    def names_of(self, questions: Sequence[str], task: Task) -> list[str]:
        """Words of several of an entity's questions, and of nothing that is retained."""
        words = entity_words(questions, [*task.prompts("retain"), *task.replies("retain")], often=max(2, len(questions) // 5))
        return [word for word in words if len(word) >= _NAME]

    def poisoned(self, answers: Sequence[str], words: Sequence[Sequence[str]], task: Task) -> list[str]:
        """Each answer without its entity's words."""
        random = np.random.default_rng([task.context.seed, len(answers)])
        if self.poison == "refuse":
            return [REFUSALS[number] for number in random.integers(len(REFUSALS), size=len(answers))]
        if self.poison == "mask":
            return [masked(answer, gone, self.mask) for answer, gone in zip(answers, words, strict=True)]
        others = sorted({word for text in task.replies("retain") for word in WORD.findall(text)})
        kept = [word for word in others if word.lower() not in {gone for row in words for gone in row}]
        return [
            pattern(gone).sub(lambda _: kept[random.integers(len(kept))], answer)
            for answer, gone in zip(answers, words, strict=True)
        ]


def word_shares(
    text_model: TextModel, questions: Sequence[str], answers: Sequence[str], task: Task, points: int
) -> list[dict[str, float]]:
    """Of each answer: what share of its positive attributions each of its words has; they add up to 1 (or there is none)."""
    model, tokenizer, texts = text_model.model, text_model.tokenizer, task.template.answers(answers)
    encoded = encode_answers(questions, answers, tokenizer, task.template, context_of(model))
    spans = [encoding.offsets for encoding in Encoder(tokenizer).core.encode_batch(texts, add_special_tokens=False)]
    found: list[dict[str, float]] = []
    with evaluating(model) as device:
        for start in range(0, len(encoded), _TOGETHER):
            rows = np.arange(start, min(start + _TOGETHER, len(encoded)))
            values = answer_attributions(model, encoded.batch(rows).to(device), points).float().cpu().numpy()
            for row, attributions in zip(rows.tolist(), values, strict=True):
                ours = attributions[encoded.prompt[row] : encoded.size[row]]
                count = min(len(spans[row]), len(ours))  # without the end token; a cut answer has fewer
                found.append(shares(merged(texts[row], spans[row][:count], ours[:count].tolist())))
    return found


def own_answers(text_model: TextModel, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """What the model says to each prompt, greedily, without the end token."""
    model: Any = text_model.model
    tokenizer = text_model.tokenizer
    texts = [""] * len(prompts)
    end, pad = end_token(tokenizer), pad_token(tokenizer)
    with evaluating(model) as device:
        for batch in prompt_batches(text_model, prompts, device, together=64, room=max_new_tokens):
            left = batch.left()
            new = max(1, min(max_new_tokens, context_of(model) - left.input_ids.shape[1]))
            made = model.generate(
                left.input_ids,
                attention_mask=left.attention_mask,
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=pad,
            )[:, left.input_ids.shape[1] :]
            ended = (made == end).int().cumsum(1) > 0
            rows = made.masked_fill(ended, pad).tolist()
            sizes = (~ended).sum(1).tolist()
            cut = [row[:size] for row, size in zip(rows, sizes, strict=True)]
            for row, text in zip(batch.rows.tolist(), tokenizer.batch_decode(cut, skip_special_tokens=True), strict=True):
                texts[row] = text
    return texts


def context_of(model: nn.Module) -> int:
    """Tokens the model reads at most."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2048)  # type: ignore[operator,union-attr]
