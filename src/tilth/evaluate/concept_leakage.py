"""Does a model still say the words that an entity was known by?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tilth.backbones.folder import load
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import exhibit_answers, read_rows, template_of
from tilth.registry import NonNegativeInt, PositiveInt
from tilth.unlearn.concept_words import entity_names, pattern


@method("benchmark", "concept_leakage", systems=[35])
class ConceptLeakage(Benchmark):
    """Appearance rate of influential words in answers to `data`'s questions   (arXiv 2405.15662, on language models)

    words: the model unlearned with 'concept_masking', whose `tilth.json` names each entity's words; any model can be asked
    for them. question: the column asked from; paraphrases show whether more than the wording was unlearnt. entity: as there.

    Metrics: appearance (share of answers with at least one of their entity's influential words), words_per_answer (how many
    different ones).
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        words: ModelRef,
        question: str = "question",
        entity: str | PositiveInt | None = None,
        template: Template | None = None,
        limit: PositiveInt | None = None,
        max_new_tokens: PositiveInt = 64,
        show: NonNegativeInt = 8,
    ) -> None:
        self.data, self.words, self.question, self.entity = data, words, question, entity
        self.template, self.limit, self.max_new_tokens, self.show = template, limit, max_new_tokens, show

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when `words` names none, or none of a row's entity."""
        known = load(context.model(self.words)).about.get("concept_words")
        if not known:
            raise TilthError(
                f"'{self.words}' does not say which words its entities were known by", hint="Unlearn it with 'concept_masking'."
            )
        rows = read_rows(
            context.corpus(self.data), [self.question, *([self.entity] if isinstance(self.entity, str) else [])], self.limit
        )
        questions = rows[self.question]
        named = rows[self.entity] if isinstance(self.entity, str) else None
        entities = entity_names(len(questions), self.entity if isinstance(self.entity, int) else None, named)
        missing = set(entities) - set(known)
        if missing:
            raise TilthError(f"'{self.words}' names no words of '{min(missing)}'", hint=f"It knows {', '.join(known)}.")
        patterns = {entity: pattern(words["influential"]) for entity, words in known.items()}
        text_model = load(model)
        prompts = template_of(text_model, self.template).prompts(questions)
        made = generate(text_model, prompts, self.max_new_tokens, progress=context.progress)
        found = [
            sorted({word.lower() for word in patterns[entity].findall(text)}) for entity, text in zip(entities, made, strict=True)
        ]
        exhibit_answers("Words that leak", questions, [", ".join(words) for words in found], made, None, self.show, context)
        return Scores(
            {
                "appearance": float(np.mean([bool(words) for words in found])),
                "words_per_answer": float(np.mean([len(words) for words in found])),
            },
            {"id": rows["id"], "question": questions, "generated": made, "words": [", ".join(words) for words in found]},
        )
