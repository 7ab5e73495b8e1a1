"""Ask a model questions and compare what it says with the right answers."""

from pathlib import Path

import numpy as np

from tilth.backbones.folder import load
from tilth.batches.text.answers import Template
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, ModelRef, Scores, method
from tilth.evaluate import metrics
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import exhibit_answers, read_rows, template_of
from tilth.registry import NonNegative, NonNegativeInt, PositiveInt


@method("benchmark", "generation")
class Generation(Benchmark):
    """ROUGE-L recall and F1 (stemmed) and exact match of the answers to `data`'s questions: `rouge`, `rouge_f1`, `exact_match`.

    exact_match: the same words, case and punctuation aside. temperature 0 is greedy; above, answers are sampled with the
    run's seed. before: a model whose answers are shown beside this one's. show: how many are shown.
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        before: ModelRef | None = None,
        template: Template | None = None,
        limit: PositiveInt | None = None,
        max_new_tokens: PositiveInt = 128,
        temperature: NonNegative = 0.0,
        show: NonNegativeInt = 8,
        question: str = "question",
        answer: str = "answer",
    ) -> None:
        self.data, self.before, self.template, self.limit = data, before, template, limit
        self.max_new_tokens, self.temperature, self.show = max_new_tokens, temperature, show
        self.question, self.answer = question, answer

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when a column is missing, there is no row, or the model cannot generate."""
        rows = read_rows(context.corpus(self.data), [self.question, self.answer], self.limit)
        questions, answers = rows[self.question], rows[self.answer]
        made = self.answers(model, questions, context)
        recall, f1 = metrics.rouge_l(made, answers)
        matched = metrics.exact_match(made, answers)

        def earlier(asked: list[str]) -> list[str]:
            return self.answers(context.model(str(self.before)), asked, context)

        exhibit_answers("Answers", questions, answers, made, earlier if self.before else None, self.show, context)
        found = {"rouge": recall, "rouge_f1": f1, "exact_match": matched}
        details = {"id": rows["id"], "question": questions, "answer": answers, "generated": made}
        return Scores(
            {name: float(np.mean(values)) for name, values in found.items()},
            details | {name: values.tolist() for name, values in found.items()},
        )

    def answers(self, model: Path, questions: list[str], context: Context) -> list[str]:
        """What the model says to each question."""
        text_model = load(model)
        prompts = template_of(text_model, self.template).prompts(questions)
        made = generate(
            text_model, prompts, self.max_new_tokens, temperature=self.temperature, seed=context.seed, progress=context.progress
        )
        return [text.strip() for text in made]
