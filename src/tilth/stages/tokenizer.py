"""Train a tokeniser on one or more corpora."""

from collections.abc import Iterator
from typing import Annotated

import pyarrow as pa

from tilth.context import Context
from tilth.contracts import Configured, CorpusRef, Kind, Stage, method, use
from tilth.corpus import Corpus
from tilth.errors import TilthError, nearest


@method("stage", "tokenizer")
class Tokenizer(Stage):
    """data: one or more corpora. columns: which text to learn from (strings or lists of strings).

    Without `columns`: 'text', or 'question' and 'answer'. Arms that are to be compared take their tokeniser from one
    such stage, so that no arm's vocabulary depends on what it was trained on.
    """

    gives = "tokenizer"
    seeded = False

    def __init__(
        self,
        *,
        data: list[CorpusRef],
        method: Annotated[Configured, Kind("tokenizer")] = use("tokenizer", "bpe"),
        columns: list[str] | None = None,
    ) -> None:
        self.data, self.method, self.columns = data, method, columns

    def run(self, context: Context) -> dict[str, float]:
        """Write 'tokenizer/'; metrics: vocabulary size."""
        tokenizer = self.method.build().train(self.texts(context))
        tokenizer.save_pretrained(context.folder / "tokenizer")
        return {"vocabulary": float(len(tokenizer))}

    def texts(self, context: Context) -> Iterator[str]:
        """Every string of the columns, corpus by corpus, in row order."""
        for name in self.data:
            corpus = context.corpus(name)
            for batch in corpus.scan(self.columns or text_columns(corpus)):
                for column in batch.columns:
                    flat = column.flatten() if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else column
                    yield from (text for text in flat.to_pylist() if text)


def text_columns(corpus: Corpus) -> list[str]:
    """The columns that hold a corpus's text: 'text', or 'question' and 'answer'."""
    for columns in (["text"], ["question", "answer"]):
        if all(column in corpus.columns for column in columns):
            return columns
    raise TilthError(
        f"no text in this corpus: its columns are {', '.join(corpus.columns)}",
        where=str(corpus.uri),
        hint=f"Name one under 'columns'. {nearest('text', list(corpus.columns))}",
    )
