"""GUARD: prompts that ask for what is to be forgotten are answered by a beam search that may not say it.

Notable: everything is decided while answering, so the weights still know all of it and dropping the guard gives it back; what is
stored of the forget set are phrases and hashed vectors, not its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.evaluating import evaluating
from tilth.batches.text.answers import DEFAULT, Template
from tilth.batches.text.encoding import Encoder, end_token
from tilth.batches.text.words import WordTable
from tilth.contracts import Batch, Guard, method
from tilth.registry import Fraction, Positive, PositiveInt
from tilth.unlearn.automaton import Automaton
from tilth.unlearn.beams import WordCosts, beam_search
from tilth.unlearn.forbidden import Store, before_any, token_sequences, words
from tilth.unlearn.prompt_classifier import PromptClassifier, prompt_states
from tilth.unlearn.prompts import prompt_batches
from tilth.unlearn.task import Task

_ROWS = 112  # beams of all prompts decoded together
_MASKED = 30.0  # nats below the likeliest token


@method("unlearn", "guard", systems=[76])
class GenerationGuard(Guard):
    """cost(y_<t, v) = -log p(v | x, y_<t) + P_token(y_<t v) + P_soft(y_<t v), for prompts with p(forget | x) > tau   (arXiv 2505.13312)

    p(forget | x): a `PromptClassifier` on the penultimate layer's mean state of the prompt. Forbidden phrases of x: those of the
    `retrieved` forget answers nearest to the question, without what the prompt itself says. P_token: infinite for a token
    with m / |f| >= beta, m tokens of a phrase f having been said; beta 1 forbids the last token, above 1 nothing. P_soft: of a
    complete word its greatest cosine with a phrase, infinite from `delta` on; None: no such cost. beams: width of the search.
    paraphrases: a column with other forms of the questions, to train the classifier on too; of the retain set where it has one, or
    another form would itself be a sign of the forget set. common: a word
    in more than this share of the retain answers is forbidden to nobody.

    Deviates from the paper: hashed character n-grams stand for SBERT; names, titles and numbers are found by their form; a phrase is
    also looked for in the finished text, whatever its case, diacritics and tokens, and the answer ends before it.
    Likelihoods of given answers: p with the tokens that P_token forbids masked and renormalised, given the true tokens before; a masked token
    keeps e^-30 of the likeliest one's probability, so that logarithms stay finite. P_soft, which judges words after the fact, has no part in it.
    """

    def __init__(
        self,
        *,
        beams: PositiveInt = 7,
        tau: Fraction = 0.5,
        beta: Positive = 1.0,
        delta: Positive | None = 0.5,
        retrieved: PositiveInt = 1,
        common: Fraction = 0.02,
        paraphrases: str | None = None,
    ) -> None:
        self.beams, self.tau, self.beta, self.delta = beams, tau, beta, delta
        self.retrieved, self.common, self.paraphrases = retrieved, common, paraphrases
        self.classifier: PromptClassifier
        self.store: Store

    def fit(self, task: Task) -> dict[str, float]:
        task.retained()
        forget, retain = (prompt_states(task.text_model, self.forms(task, part)) for part in ("forget", "retain"))
        self.classifier = PromptClassifier.fit(forget, retain, task.context.seed)
        self.store = Store.fit(task.replies("forget"), task.replies("retain"), self.common)
        return {
            "forget_recognised": float((self.classifier.probability(forget) > self.tau).float().mean()),
            "retain_mistaken": float((self.classifier.probability(retain) > self.tau).float().mean()),
            "phrases": float(sum(map(len, self.store.phrases))),
        }

    def forms(self, task: Task, part: Literal["forget", "retain"]) -> list[str]:
        """The prompts of a set, and its questions in other forms where it has them."""
        corpus = task.forget if part == "forget" else task.retained()
        if self.paraphrases is None or (part == "retain" and self.paraphrases not in corpus.columns):
            return task.prompts(part)
        return task.prompts(part) + task.template.prompts(task.column(part, self.paraphrases))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = self.store.state()
        weights = self.classifier.state_dict()
        return {**{f"store.{k}": v for k, v in tensors.items()}, **{f"classifier.{k}": v for k, v in weights.items()}}, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: Any) -> None:
        parts: dict[str, dict[str, Tensor]] = {"store": {}, "classifier": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.store = Store.restored(parts["store"], facts)
        self.classifier = PromptClassifier(len(parts["classifier"]["mean"]))
        self.classifier.load_state_dict(parts["classifier"])
        self.classifier.eval()

    def flags(self, text_model: Any, prompts: Sequence[str]) -> np.ndarray:
        flagged: np.ndarray = (self.classifier.probability(prompt_states(text_model, prompts)) > self.tau).numpy()
        return flagged

    def phrases(self, text_model: Any, prompts: Sequence[str]) -> list[list[str]]:
        """What must not be said to each prompt."""
        return self.store.for_prompts(prompts, asked(prompts, text_model), self.retrieved)

    def automaton(self, text_model: Any, phrases: Sequence[Sequence[str]]) -> Automaton:
        """One automaton for the phrases of several prompts."""
        tokenizer = text_model.tokenizer
        encoder = Encoder(tokenizer)
        vocabulary = text_model.model.get_output_embeddings().weight.shape[0]
        return Automaton([token_sequences(some, encoder, tokenizer.unk_token_id) for some in phrases], vocabulary)

    def decode(self, text_model: Any, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        tokenizer, texts = text_model.tokenizer, [""] * len(prompts)
        end, table = end_token(tokenizer), WordTable(tokenizer)
        phrases = self.phrases(text_model, prompts)
        context = int(getattr(text_model.model.config.get_text_config(), "max_position_embeddings", 0) or 2048)
        together = max(1, _ROWS // self.beams)
        with evaluating(text_model.model) as device:
            for batch in prompt_batches(text_model, prompts, device, together=together, room=max_new_tokens):
                some = [phrases[row] for row in batch.rows.tolist()]
                soft = None
                if self.delta is not None:
                    soft = WordCosts(tokenizer, table, self.store.encoding, some, self.delta, self.beams)
                padded = batch.left()
                made = beam_search(
                    text_model.model, padded.input_ids, padded.attention_mask, self.automaton(text_model, some),
                    width=self.beams, new=min(max_new_tokens, context - padded.input_ids.shape[1]), end=end, beta=self.beta, soft=soft,
                )  # fmt: skip
                for row, ids, forbidden in zip(batch.rows.tolist(), made, some, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    texts[row] = before_any(text, forbidden) if self.beta <= 1 else text
        return texts

    def adjust(self, logits: Tensor, text_model: Any, batch: Batch, where: Tensor) -> Tensor:
        if not len(where):
            return logits
        begins = where.int().argmax(1).tolist()
        ids = batch.input_ids
        prompts = text_model.tokenizer.batch_decode(
            [row[: start + 1] for row, start in zip(ids.tolist(), begins, strict=True)], skip_special_tokens=True
        )
        automaton = self.automaton(text_model, self.phrases(text_model, prompts)).to(ids.device)
        state = automaton.roots
        states = torch.zeros_like(ids)
        for column in range(ids.shape[1] - 1):
            states[:, column] = state
            state = torch.where(where[:, column], automaton.step(state, ids[:, column + 1].clamp(min=0)), state)
        banned = automaton.forbidden(states[where], self.beta)
        floor = logits.amax(-1, keepdim=True) - _MASKED
        return torch.where(banned, torch.minimum(logits, floor), logits)


def asked(prompts: Sequence[str], text_model: Any) -> list[str]:
    """The words of each question, without those that the model's template puts around it."""
    given = text_model.about.get("template")
    template = Template(**given) if given else DEFAULT
    before, behind = (words(part) for part in template.prompt.split("{question}", 1))
    found = []
    for said in map(words, prompts):
        start = len(before) if said[: len(before)] == before else 0
        stop = len(said) - len(behind) if behind and said[-len(behind) :] == behind else len(said)
        found.append(" ".join(said[start:stop]))
    return found
