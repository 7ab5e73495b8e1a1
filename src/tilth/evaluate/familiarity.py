"""How familiar a text is to a model: does it expect, and does it write, the names that only that text has?

Notable: no judge is asked. Prompts are the places of the text where a name comes next, cut back to what stands behind the name
before, so that a name cannot be copied from the prompt; what is summed is the probability of all names, not of the right one.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from tilth.backbones.evaluating import evaluating
from tilth.backbones.folder import TextModel, load
from tilth.context import Context
from tilth.contracts import Batch, Benchmark, CorpusRef, Scores, method
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.evaluate.likelihood import context_length
from tilth.registry import NonNegativeInt, Positive, PositiveInt
from tilth.unlearn.anchors import Anchors, load_anchors, mine_anchors
from tilth.unlearn.likelihood import IGNORED, answers
from tilth.unlearn.translation import Translator

_TOGETHER = 32  # prompts per forward pass


@method("benchmark", "familiarity", systems=[28])
class Familiarity(Benchmark):
    """Familiarity with a text by its anchored terms   (arXiv 2310.02238, section 4; both ways, without the judge)

    `familiarity`: mean over prompts of the next-token probability of everything that begins one of the terms.
    `completion_familiarity`: share of greedy completions of `max_new_tokens` tokens that hold one of the terms (0 tokens: left out).

    forget: the text; retain: text without it, to mine names from as `generic_labels` does, without titles, which other texts have
    too; anchors: terms and counterparts, or a file of them, instead. Prompts are `context` words or fewer in front of a term, at
    least `shortest`, without another term; `limit` of them, evenly spread over the text.

    Deviates: the paper's 300 prompts and their grades (0 to 3) are a language model's; here a completion counts or does not.
    """

    def __init__(
        self,
        *,
        forget: CorpusRef,
        retain: CorpusRef | None = None,
        anchors: dict[str, str] | str | None = None,
        mined: PositiveInt = 200,
        ratio: Positive = 10.0,
        context: PositiveInt = 24,
        shortest: PositiveInt = 4,
        limit: PositiveInt = 300,
        max_new_tokens: NonNegativeInt = 16,
    ) -> None:
        self.forget, self.retain, self.anchors, self.mined, self.ratio = forget, retain, anchors, mined, ratio
        self.context, self.shortest, self.limit, self.max_new_tokens = context, shortest, limit, max_new_tokens

    def __call__(self, model: Path, context: Context) -> Scores:
        text_model = load(model)
        texts = context.corpus(self.forget).table(["text"])["text"].to_pylist()
        anchors = Anchors(self.terms(texts, context))
        prompts = [prompt for text in texts for prompt in name_prompts(text, anchors, self.context, self.shortest)]
        if not prompts:
            raise TilthError("the text has no place where one of the terms comes next", hint="Check the terms, or lower 'ratio'.")
        prompts = [prompts[at] for at in np.linspace(0, len(prompts) - 1, min(self.limit, len(prompts))).astype(int)]
        mass = term_probability(text_model, prompts, anchors)
        found = {"familiarity": float(mass.mean()), "prompts": float(len(prompts))}
        details = {"prompt": prompts, "probability": mass.tolist()}
        if self.max_new_tokens:
            made = generate(text_model, prompts, self.max_new_tokens, progress=context.progress)
            holds = [bool(anchors.find(text)) for text in made]
            found["completion_familiarity"] = float(np.mean(holds))
            details |= {"completion": made, "familiar": holds}
            context.exhibit(
                "examples", "Completions", columns=["prompt", "completion"], rows=[list(pair) for pair in zip(prompts[:6], made, strict=False)]
            )  # fmt: skip
        return Scores(found, details)

    def terms(self, texts: list[str], context: Context) -> dict[str, str]:
        """Terms and counterparts, as given or mined."""
        if isinstance(self.anchors, str):
            return load_anchors(self.anchors)
        if self.anchors is not None:
            return self.anchors
        if self.retain is None:
            raise TilthError("familiarity needs 'anchors', or 'retain' to mine them from")
        staying = context.corpus(self.retain).table(["text"])["text"].to_pylist()
        return mine_anchors(texts, staying, most=self.mined, ratio=self.ratio)


def name_prompts(text: str, anchors: Anchors, words: int, shortest: int) -> list[str]:
    """For each term of the text, what stands before it and behind the term before that: its last `words` words."""
    found = []
    matches = anchors.find(text)
    for before, match in pairwise([None, *matches]):
        assert match is not None
        between = text[before.end if before else 0 : match.start].rstrip()
        pieces = between.split(" ")
        if sum(map(bool, pieces)) >= shortest:
            found.append(" ".join(pieces[-words:]))
    return found


def term_probability(text_model: TextModel, prompts: list[str], anchors: Anchors) -> np.ndarray:
    """The probability that the next token begins one of the terms: (prompts,)."""
    translator = Translator(text_model.tokenizer, anchors)
    forms = {form for term in anchors.terms for form in (term, term.upper())}
    beginnings = sorted({token for form in forms for token in translator.beginning(form)})
    head = translator.encoder.frame()[0].tolist()
    most = context_length(text_model.model) - 1
    encoded = [[*head, *ids.tolist()][-most:] for ids in np.split(*_encoded(translator, prompts))]
    mass = []
    with evaluating(text_model.model) as device:
        for start in range(0, len(encoded), _TOGETHER):
            some = encoded[start : start + _TOGETHER]
            width = max(map(len, some)) + 1
            ids, labels = torch.zeros(len(some), width, dtype=torch.long), torch.full((len(some), width), IGNORED)
            for row, sequence in enumerate(some):
                ids[row, : len(sequence)] = torch.tensor(sequence)
                labels[row, len(sequence)] = 0
            probability = answers(text_model.model, Batch(input_ids=ids, labels=labels).to(device)).logits.softmax(-1)
            mass.append(probability[:, beginnings].sum(1).cpu().numpy())
    return np.concatenate(mass)


def _encoded(translator: Translator, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    ids, lengths = translator.encoder(prompts)
    return ids, np.cumsum(lengths)[:-1]
