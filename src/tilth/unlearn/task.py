"""What an edit or a guard works on: a model, what is to go, what is to stay, and where to keep what is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tilth.backbones.folder import TextModel
from tilth.batches.text.answers import DEFAULT, Template
from tilth.context import Context
from tilth.contracts import Examples
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.training.settings import Budget, Training

Part = Literal["forget", "retain"]


@dataclass
class Task:
    """text_model: may be changed by an edit, not by a guard. forget, retain: the rows; going, staying: the same, encoded.

    training, budget: for methods that train something of their own (with `training.loop.fit`).
    """

    text_model: TextModel
    forget: Corpus
    retain: Corpus | None
    going: Examples
    staying: Examples | None
    training: Training
    budget: Budget
    context: Context

    @property
    def template(self) -> Template:
        """How the model was taught to read a question."""
        given = self.text_model.about.get("template")
        return Template(**given) if given else DEFAULT

    def column(self, part: Part, name: str) -> list[Any]:
        """One column of the forget or the retain set, in row order; no values without a retain set."""
        corpus = self.forget if part == "forget" else self.retain
        if corpus is None:
            return []
        if name not in corpus.columns:
            raise TilthError(
                f"the {part} set has no column '{name}'", where=corpus.uri, hint=f"Its columns are {', '.join(corpus.columns)}."
            )
        values: list[Any] = corpus.table([name])[name].to_pylist()
        return values

    def prompts(self, part: Part) -> list[str]:
        """What a generation would start from: questions in the model's template; of a corpus of texts, the texts."""
        corpus = self.forget if part == "forget" else self.retain
        if corpus is not None and "question" in corpus.columns:
            return self.template.prompts(self.column(part, "question"))
        return self.column(part, "text") if corpus is not None else []

    def replies(self, part: Part) -> list[str]:
        """The answers; of a corpus of texts, the texts."""
        corpus = self.forget if part == "forget" else self.retain
        return self.column(part, "answer" if corpus is not None and "answer" in corpus.columns else "text")

    def retained(self) -> Corpus:
        """The retain set of a method that cannot do without."""
        if self.retain is None:
            raise TilthError("this method needs a retain set, to tell what is to stay", hint="Give one under 'retain'.")
        return self.retain
