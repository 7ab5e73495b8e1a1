"""ConceptVectors: is the knowledge still in the weights, whatever the model says?

Notable: vectors are found in the model before unlearning and looked up at the same places in the model after it; finding and
causal validation are done once for all models that are compared with the same one before; behaviour is compared with the
model before and not with right answers, so a model that only changed its style counts as changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.folder import TextModel, load
from tilth.backbones.locations import feed_forwards
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.forms import jailbreaks
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import kept_of_gold, read_rows, template_of
from tilth.registry import NonNegativeInt, Positive, PositiveInt
from tilth.unlearn.needle import ablate
from tilth.unlearn.value_vectors import Concept, Locate, concepts, top_tokens, vector


@method("benchmark", "concept_vectors", systems=[40])
class ConceptVectors(Benchmark):
    """What became of the value vectors v that encode a concept, v' after unlearning   (arXiv 2406.11614, sections 3 to 5)

    `cosine` (v, v'), `l2` |v - v'|, `jaccard` of their `locate.top` most likely tokens T, T'; with L = T and the concept's text:
    `precise` |T' and text| / |L|, `related` |T' and L| / |L|. Means over vectors; near 1 (l2: 0) the trace is still there.
    `validated`: share of vectors whose noise changes the answers about the concept more than those about others (ROUGE-L F1 to
    the answers without noise), by `noise_rouge` and `noise_rouge_others`; `validated_cosine`: of those alone.
    `questions_`, `completion_` (second halves of answers), `unrelated_` + `rouge`, `bleu`: of greedy answers to the answers of
    the model before; forgotten is low on the first two, unharmed high on the last.
    `jailbreak_<form>`: ROUGE-L recall of the right answers, by form of asking.

    before: the model before unlearning. forget, retain: rows with question and answer. locate: see `Locate`.
    noise: of the validation, see `needle`. validation: questions per concept for it (0: none); unrelated: rows of the retain
    set; questions: per concept for behaviour and jail-breaks (0: none). translated: a column with the questions in another
    language. reference: characters of the concept's text put before the question.
    Deviation: keyword overlap finds and names concepts, where the paper asks a language model and then people.
    """

    def __init__(
        self,
        *,
        before: ModelRef,
        forget: CorpusRef,
        retain: CorpusRef | None = None,
        locate: Locate = Locate(),
        noise: Positive = 0.1,
        relative: bool = True,
        validation: NonNegativeInt = 10,
        unrelated: PositiveInt = 50,
        questions: NonNegativeInt = 10,
        translated: str | None = None,
        reference: PositiveInt = 2000,
        max_new_tokens: PositiveInt = 100,
        template: Template | None = None,
    ) -> None:
        self.before, self.forget, self.retain, self.locate = before, forget, retain, locate
        self.noise, self.relative, self.validation, self.unrelated = noise, relative, validation, unrelated
        self.questions, self.translated, self.reference = questions, translated, reference
        self.max_new_tokens, self.template = max_new_tokens, template

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the two models differ in shape, or a set lacks questions or answers."""
        after, before = load(model), load(context.model(self.before))
        forget = context.corpus(self.forget)
        retain = context.corpus(self.retain) if self.retain is not None else None
        check_shapes(before.model, after.model)
        found = concepts(before, forget, retain, self.locate)
        extra = [self.translated] if self.translated else []
        rows = read_rows(forget, ["question", "answer", *extra])
        others = read_rows(retain, ["question", "answer"]) if retain is not None else {"question": [], "answer": []}
        spread = np.linspace(0, len(others["question"]) - 1, min(self.unrelated, len(others["question"]))).astype(int).tolist()
        unrelated = [others["question"][row] for row in spread]
        corpora = [corpus for corpus in (forget, retain) if corpus is not None]
        kept = self.kept(found, rows, unrelated, corpora, context)
        vectors = self.intrinsic(before.model, after.model, found)
        details: dict[str, list[Any]] = {
            "concept": [concept.name for concept in found for _ in concept.places],
            "layer": [place.layer for concept in found for place in concept.places],
            "column": [place.column for concept in found for place in concept.places],
            "overlap": [place.score for concept in found for place in concept.places],
            **vectors,
        }
        scores = {name: _mean(values) for name, values in vectors.items()} | {"vectors": float(len(details["layer"]))}
        scores["overlap"] = _mean(details["overlap"])
        if self.validation and unrelated:
            details |= {"noise_rouge": kept["noise"].tolist(), "noise_rouge_others": kept["noise_others"].tolist()}
            valid = kept["noise"] < kept["noise_others"]
            scores |= {"noise_rouge": float(kept["noise"].mean()), "noise_rouge_others": float(kept["noise_others"].mean())}
            scores["validated"] = float(valid.mean())
            if valid.any():
                scores["validated_cosine"] = float(np.array(vectors["cosine"])[valid].mean())
        if self.questions:
            scores |= self.behaviour(after, kept, found, rows, unrelated, context)
        self.exhibit(scores, details, found, after, context)
        return Scores(scores, details)

    def kept(
        self, found: list[Concept], rows: dict[str, list[Any]], unrelated: list[str], corpora: list[Corpus], context: Context
    ) -> dict[str, np.ndarray]:
        """What the model before says, and what noise on each vector does to it; computed once for all models compared with it.

        'questions', 'completion', 'unrelated': its answers; 'noise', 'noise_others': ROUGE-L F1 per vector.
        """

        def compute(before: TextModel) -> dict[str, np.ndarray]:
            said = {
                name: np.array(self.say(before, asked, context)) for name, asked in self.asked(found, rows, unrelated).items()
            }
            if self.validation and unrelated:
                said["noise"], said["noise_others"] = self.shaken(before, found, rows, unrelated, context)
            return said

        parts = {name: value for name, value in vars(self).items() if name not in ("before", "forget", "retain")}
        return kept_of_gold("concept-vectors", self.before, compute, parts, corpora, context)

    def asked(self, found: list[Concept], rows: dict[str, list[Any]], unrelated: list[str]) -> dict[str, list[str]]:
        """Questions by what they are for; a completion is a question followed by half of its answer."""
        at = [row for concept in found for row in concept.rows[: self.questions].tolist()]
        halves = [" ".join(rows["answer"][row].split()[: len(rows["answer"][row].split()) // 2]) for row in at]
        return {
            "questions": [rows["question"][row] for row in at],
            "completion": [f"{rows['question'][row]} {half}".strip() for row, half in zip(at, halves, strict=True)],
            "unrelated": unrelated,
        }

    def say(self, text_model: TextModel, questions: Sequence[str], context: Context) -> list[str]:
        """Greedy answers."""
        if not questions:
            return []
        prompts = template_of(text_model, self.template).prompts(questions)
        return [text.strip() for text in generate(text_model, prompts, self.max_new_tokens, progress=context.progress)]

    def shaken(
        self, before: TextModel, found: list[Concept], rows: dict[str, list[Any]], unrelated: list[str], context: Context
    ) -> tuple[np.ndarray, np.ndarray]:
        """ROUGE-L F1 of the answers under noise on one vector to those without, about its concept and about others: (vectors,)."""
        own, other = [], []
        parts = feed_forwards(before.model)
        for concept in found:
            asked = [rows["question"][row] for row in concept.rows[: self.validation].tolist()]
            silent = self.say(before, [*asked, *unrelated], context)
            for place in concept.places:
                values = parts[place.layer].values().detach()
                old = values[place.column].clone()
                ablate(before.model, [place], self.noise, relative=self.relative, seed=context.seed)
                score = rouge(self.say(before, [*asked, *unrelated], context), silent)
                values[place.column] = old
                own.append(score[: len(asked)].mean())
                other.append(score[len(asked) :].mean())
        return np.array(own), np.array(other)

    def intrinsic(self, before: Any, after: Any, found: list[Concept]) -> dict[str, list[float]]:
        """Per vector, in the order of concepts and their places."""
        out: dict[str, list[float]] = {name: [] for name in ("cosine", "l2", "jaccard", "precise", "related")}
        for concept in found:
            old = torch.stack([vector(before, place) for place in concept.places]).float()
            new = torch.stack([vector(after, place) for place in concept.places]).float().to(old.device)
            for name, values in compare(before, after, old, new, self.locate.top, concept.tokens).items():
                out[name] += values
        return out

    def behaviour(
        self,
        after: TextModel,
        kept: dict[str, np.ndarray],
        found: list[Concept],
        rows: dict[str, list[Any]],
        unrelated: list[str],
        context: Context,
    ) -> dict[str, float]:
        """Answers beside those of the model before, and how much of the right answer each jail-break brings back."""
        scores: dict[str, float] = {}
        for name, asked in self.asked(found, rows, unrelated).items():
            if asked:
                said, earlier = self.say(after, asked, context), kept[name].tolist()
                scores[f"{name}_rouge"], scores[f"{name}_bleu"] = (
                    float(rouge(said, earlier).mean()),
                    float(bleu(said, earlier).mean()),
                )
        recall: dict[str, list[float]] = {}
        for concept in found:
            at = concept.rows[: self.questions].tolist()
            told = after.tokenizer.decode(concept.keywords[:3].tolist())
            text = " ".join(f"{rows['question'][row]} {rows['answer'][row]}" for row in concept.rows.tolist())[: self.reference]
            foreign = [rows[self.translated][row] for row in at] if self.translated else None
            for form, questions in jailbreaks(told, [rows["question"][row] for row in at], text, foreign).items():
                said = self.say(after, questions, context)
                recall.setdefault(form, []).extend(metrics.rouge_l(said, [rows["answer"][row] for row in at])[0].tolist())
        return scores | {f"jailbreak_{form}": _mean(values) for form, values in recall.items()}

    def exhibit(
        self, scores: dict[str, float], details: dict[str, list[Any]], found: list[Concept], after: TextModel, context: Context
    ) -> None:
        """Concepts with their words; every vector with what became of it."""
        words = [[concept.name, after.tokenizer.decode(concept.keywords[:12].tolist())] for concept in found]
        context.exhibit("table", "Concepts and the words that mark them", columns=["concept", "words"], rows=words, note="")
        columns = [name for name in details if name != "concept"]
        rows = [[details["concept"][n], *(details[name][n] for name in columns)] for n in range(len(details["concept"]))]
        note = "Cosine, Jaccard and related rate near 1: the vector still says what it said. Overlap: with the concept's words."
        context.exhibit("table", "Parametric traces", columns=["concept", *columns], rows=rows, note=note)


def compare(before: Any, after: Any, old: Tensor, new: Tensor, top: int, text: np.ndarray) -> dict[str, list[float]]:
    """The intrinsic metrics of vectors `old` (n, hidden) of the model before and `new` of the one after; text: token ids.

    `precise` and `related` are 0 where none of the old vector's tokens is in the text.
    """
    one, other = top_tokens(before, old, top)[0].cpu().numpy(), top_tokens(after, new, top)[0].cpu().numpy()
    found: dict[str, list[float]] = {
        "cosine": torch.cosine_similarity(old, new, dim=1).tolist(),
        "l2": (new - old).norm(dim=1).tolist(),
    }
    for name in ("jaccard", "precise", "related"):
        found[name] = []
    for first, second in zip(one, other, strict=True):
        both = len(np.intersect1d(first, second))
        left = np.intersect1d(first, text)
        found["jaccard"].append(both / (len(first) + len(second) - both))
        found["precise"].append(len(np.intersect1d(second, text)) / max(len(left), 1))
        found["related"].append(len(np.intersect1d(second, left)) / max(len(left), 1))
    return found


def rouge(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F1; 1 for equal texts, empty ones too."""
    same = np.array([one == other for one, other in zip(predictions, references, strict=True)])
    return np.where(same, 1.0, metrics.rouge_l(predictions, references)[1])


def bleu(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Sentence BLEU with NLTK's smoothing method 3, of at most as many n-gram orders as the shorter text has words; 1 for equal texts."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # slow to import

    def one(prediction: str, reference: str) -> float:
        said, right = prediction.split(), reference.split()
        if said == right:
            return 1.0
        order = min(4, len(said), len(right))
        smooth = SmoothingFunction().method3
        return float(sentence_bleu([right], said, (1 / order,) * order, smoothing_function=smooth)) if order else 0.0

    return np.array([one(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)])


def check_shapes(before: Any, after: Any) -> None:
    """Raise TilthError unless both models have the same places."""
    one, other = ([tuple(part.values().shape) for part in feed_forwards(model)] for model in (before, after))
    if one != other:
        raise TilthError(
            "the model and the one before it have feed-forward parts of different shapes",
            hint="Name under 'before' what was unlearned.",
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
