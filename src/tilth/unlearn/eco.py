"""Embedding-corrupted prompts: the model is left alone; prompts about what is to go reach it spoilt.

Notable: hooks are kept as handles and only these are taken away; noise is seeded by a hash of the prompt's tokens, so that
asking twice gives the same answer and nothing can be averaged out; the answer's own tokens are never spoilt, whether it is
generated or scored, and the spoilt prompt lives on in the cache of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import TextModel, load
from tilth.batches.text.answers import DEFAULT, Template, encode_answers
from tilth.contracts import Batch, Examples, Guard, ModelRef, Noise, method
from tilth.errors import TilthError
from tilth.registry import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from tilth.unlearn.chosen import Chosen
from tilth.unlearn.corruption import COUNTED, REORDERING, Dimensions, How, corrupt
from tilth.unlearn.entities import entity_tokens, entity_words
from tilth.unlearn.likelihood import IGNORED, answer_log_probability
from tilth.unlearn.reference import batches_in_order
from tilth.unlearn.scope import TextScope, calibrated, questions
from tilth.unlearn.task import Part, Task
from tilth.unlearn.zeroth_order import zeroth_order

_PARTS: tuple[Part, Part] = ("forget", "retain")
_REWORDED = "paraphrased_question"
Around = Callable[[Batch], AbstractContextManager[None]]
Spoil = Callable[[Tensor, Tensor, Tensor], Tensor | None]


@method("unlearn", "eco", systems=[20])
class ECO(Guard):
    """x in scope: the model answers from corrupt(e(x), strength); otherwise it is not touched   (arXiv 2406.07933, section 3)

    Scope: a classifier of questions (`TextScope`), fitted on all but a share `held_out` of forget and retain questions and
    their paraphrases ('paraphrased_question', where there are any). On that share its threshold is set so that at most a
    share `false_alarms` of retain questions are flagged (0: none).
    Corruption: `how`, `dimensions`, `count` as in `corruption.corrupt`, on all tokens of the prompt but the last, or
    (`only_entities`) on those of words that occur in forget questions and in no retain question.
    Strength: as given; or learnt (None) by `zeroth_order` from `start`, on `examples` forget rows, to bring the mean
    -log p of an answer token, in nats, to what a model would give that never saw the answers: that of the model `gold`, -log of
    `target` where it is known (chance, say), else what this model gives wrong answers to the same questions. each: one strength
    for each of `count` dimensions.

    Deviates from the paper: TF-IDF and logistic regression instead of RoBERTa; entities are words that only the forget set
    has, where the paper runs a tagger; scores are in nats, as probabilities are flat near 0 and 1; the best strength
    asked about is kept instead of the last; entities of the answer are not corrupted when it is scored, as they are not when
    it is generated.
    """

    def __init__(
        self,
        *,
        how: How = "noise",
        dimensions: Dimensions = "first",
        count: PositiveInt = 1,
        only_entities: bool = False,
        strength: NonNegative | None = None,
        gold: ModelRef | None = None,
        target: Positive | None = None,
        start: Positive = 0.1,
        least: NonNegative = 0.1,
        rate: Positive = 100.0,
        epsilon: Positive = 0.0999,
        steps: NonNegativeInt = 10,
        enough: NonNegative = 0.05,
        each: bool = False,
        examples: PositiveInt = 100,
        held_out: Fraction = 0.2,
        false_alarms: Fraction = 0.0,
    ) -> None:
        if gold is not None and target is not None:
            raise TilthError("a guard is fitted to a gold model or to a target, not to both", where="eco")
        self.how, self.dimensions, self.count, self.only_entities = how, dimensions, count, only_entities
        self.given, self.gold, self.target = strength, gold, target
        self.start, self.least, self.rate, self.epsilon = start, least, rate, epsilon
        self.steps, self.enough, self.each, self.examples = steps, enough, each, examples
        self.held_out, self.false_alarms = held_out, false_alarms
        self.scope: TextScope
        self.strength = torch.tensor([strength if strength is not None else start])
        self.words: list[str] = []

    def fit(self, task: Task) -> dict[str, float]:
        """Metrics: `strength` (the mean of several), `distance` in nats from the target, what the classifier does on held-out
        questions, and `flagged_probability`, the mean p^(1/n) of the answers to the forget questions it flags, under the guard.
        """
        found = self.fit_scope(task)
        if self.only_entities:
            inside, outside = (questions(task.template, task.prompts(part)) for part in _PARTS)
            self.words = entity_words(inside, outside)
        if self.given is None and self.how not in REORDERING:
            found["distance"] = self.fit_strength(task)
        flagged = np.flatnonzero(self.flags(task.text_model, task.prompts("forget")))
        if "question" in task.forget.columns and len(flagged):
            found["flagged_probability"] = float(
                np.exp(-losses(task.text_model.model, Chosen(task.going, flagged), self.around(task))).mean()
            )
        return found | {"strength": float(self.strength.mean())}

    def fit_scope(self, task: Task) -> dict[str, float]:
        """Share of held-out forget questions, of their paraphrases, and of held-out retain questions that are flagged."""
        known, held, again = {}, {}, {}
        for part, corpus in zip(_PARTS, (task.forget, task.retained()), strict=True):
            texts = questions(task.template, task.prompts(part))
            reworded = task.column(part, _REWORDED) if _REWORDED in corpus.columns else []
            order = np.argsort(Noise(task.context.seed, np.arange(len(texts))).uniform(f"held out of {part}"))
            cut = max(1, round(len(texts) * (1 - self.held_out)))
            rest = order[cut:] if cut < len(order) else order
            known[part] = _rows(texts, order[:cut]) + _rows(reworded, order[:cut])
            held[part], again[part] = _rows(texts, rest), _rows(reworded, rest)
        self.scope = TextScope.fit(known["forget"], known["retain"])
        self.scope.threshold = calibrated(self.scope.scores(held["forget"]), self.scope.scores(held["retain"]), self.false_alarms)
        found = {"recall": float(self.scope(held["forget"]).mean()), "false_alarms": float(self.scope(held["retain"]).mean())}
        if again["forget"]:
            found["paraphrase_recall"] = float(self.scope(again["forget"]).mean())
        return found

    def fit_strength(self, task: Task) -> float:
        """Learn the strength; gives how far from the target the score then is, in nats a token."""
        if "question" not in task.forget.columns:
            raise TilthError(
                "the strength of a corruption is learnt from questions and answers, and the forget set has no questions",
                where=task.forget.uri,
                hint="Give 'strength'.",
            )
        target = self.aim(task)
        rows = np.unique(np.linspace(0, len(task.going) - 1, min(self.examples, len(task.going))).astype(int))

        def distance(strength: Tensor) -> float:
            self.strength = strength
            return abs(float(losses(task.text_model.model, Chosen(task.going, rows), self.around(task)).mean()) - target)

        dimensions = self.count if self.each and self.how not in COUNTED else 1
        with torch.random.fork_rng(devices=[]):
            generator = torch.Generator().manual_seed(task.context.seed)
            found = zeroth_order(
                distance, torch.full((dimensions,), self.start), rate=self.rate, epsilon=self.epsilon, least=self.least,
                steps=self.steps, enough=self.enough, generator=generator,
            )  # fmt: skip
        self.strength = found.best
        path = [[float(point.mean()), value] for point, value in found.path]
        task.context.folder.mkdir(parents=True, exist_ok=True)
        task.context.exhibit(
            "curves", "Strength of the corruption", series={"distance": path}, x="strength", y="nats from the target", log=False
        )
        return found.score

    def around(self, task: Task) -> Around:
        """Within what a batch of the task's answers is scored under this guard."""
        return lambda batch: self.scoring(task.text_model, batch)

    def aim(self, task: Task) -> float:
        """Mean -log p of an answer token under a model that does not know the answers, in nats."""
        if self.target is not None:
            return -float(np.log(self.target))
        if self.gold is not None:
            return float(losses(load(task.context.model(self.gold)).model, task.going).mean())
        asked, replies = task.column("forget", "question"), task.replies("forget")
        pairs = list(zip(asked, replies[1:] + replies[:1], strict=True))  # answers to other questions
        if "perturbed_answer" in task.forget.columns:
            wrong = task.column("forget", "perturbed_answer")
            pairs = [(question, text) for question, texts in zip(asked, wrong, strict=True) for text in texts or []] or pairs
        model, tokenizer = task.text_model.model, task.text_model.tokenizer
        length = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2048)
        texts, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
        return float(losses(model, encode_answers(texts, answers, tokenizer, task.template, length)).mean())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = self.scope.state()
        return tensors | {"strength": self.strength}, facts | {"words": self.words}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: TextModel) -> None:
        self.scope, self.strength, self.words = TextScope.restored(tensors, facts), tensors["strength"], facts["words"]

    def flags(self, text_model: TextModel, prompts: Sequence[str]) -> np.ndarray:
        told = text_model.about.get("template")
        return self.scope(questions(Template(**told) if told else DEFAULT, prompts))

    @contextmanager
    def acting(self, text_model: TextModel) -> Iterator[None]:
        with spoilt(text_model.model, lambda ids, prompt, output: self.spoil(text_model, ids, prompt, output)):
            yield

    @contextmanager
    def scoring(self, text_model: TextModel, batch: Batch) -> Iterator[None]:
        prompt = (batch.labels != IGNORED).cumsum(1) == 0
        with spoilt(text_model.model, lambda ids, _, output: self.spoil(text_model, ids, prompt, output)):
            yield

    def spoil(self, text_model: TextModel, ids: Tensor, prompt: Tensor, embeddings: Tensor) -> Tensor:
        """embeddings (batch, tokens, width) with the selected tokens of each prompt corrupted; prompt (batch, tokens): bool."""
        told, inside = ids.cpu(), prompt.cpu()
        where, generators = torch.zeros_like(inside), []
        for row in range(len(told)):
            tokens = told[row][inside[row]]
            where[row, inside[row]] = self.selected(text_model, tokens)
            generators.append(torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(tokens.numpy().tobytes()) >> 1))
        return corrupt(
            embeddings, where.to(embeddings.device), self.how, self.strength, generators,
            dimensions=self.dimensions, count=self.count,
        )  # fmt: skip

    def selected(self, text_model: TextModel, tokens: Tensor) -> Tensor:
        """Which tokens (n,) of a prompt are corrupted: all but the last, or those of entities where there are any."""
        chosen = torch.ones(len(tokens), dtype=torch.bool)
        if self.only_entities:
            entities = torch.from_numpy(entity_tokens(tokens.tolist(), text_model.tokenizer, self.words))
            chosen = entities if entities[:-1].any() else chosen
        chosen[-1:] = False
        return chosen


def losses(model: nn.Module, examples: Examples, around: Around | None = None) -> np.ndarray:
    """-log p of an answer token, averaged over each answer, in nats: (examples,); around: within what each batch is scored."""
    found = []
    with evaluating(model) as device:
        for batch in batches_in_order(examples):
            here = batch.to(device)
            with around(here) if around else nullcontext():
                total = answer_log_probability(model, here)
            found.append(-total / (here.labels[:, 1:] != IGNORED).sum(1).clamp(min=1))
    return torch.cat(found).cpu().numpy()  # type: ignore[no-any-return]


def _rows(values: Sequence[str], rows: np.ndarray) -> list[str]:
    """Values at some rows; none of an empty column, and none that is empty."""
    return [values[row] for row in rows.tolist() if values[row]] if len(values) else []


@contextmanager
def spoilt(model: Any, spoil: Spoil) -> Iterator[None]:
    """Within, spoil(ids, prompt, embeddings) replaces the embeddings of whatever `model` reads at once, not of single tokens.

    prompt: where there is no padding, bool (batch, tokens).
    """
    mask: list[Tensor | None] = [None]

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        mask[0] = kwargs.get("attention_mask")

    def act(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        ids = args[0]
        if ids.shape[1] < 2:  # a generated token, read with the spoilt prompt in the cache
            return None
        told = mask[0]
        prompt = (
            told[:, -ids.shape[1] :].bool() if told is not None and told.ndim == 2 else torch.ones_like(ids, dtype=torch.bool)
        )
        return spoil(ids, prompt, output)

    handles = [
        model.register_forward_pre_hook(look, with_kwargs=True),
        model.get_input_embeddings().register_forward_hook(act),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
