"""Texts made of a table of facts: right, corrupted, or those that may be retained."""

from typing import Literal

import pyarrow as pa

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.evaluate.corruption import corrupted_documents, true_documents
from tilth.evaluate.facts import Facts, Selection
from tilth.registry import NonNegativeInt, PositiveInt

_SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("spans", pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())])))]
)


@method("stage", "fact_texts", systems=[56])
class FactTexts(Stage):
    """data: rows with entity, property, question and answers. about: which texts.

    'truth' tells all selected facts; 'retained' those of entities that are neither affected nor companions (never a right fact of an
    affected one: that would be relearning, not recovery); 'corruption' tells wrong facts of affected entities, and with each document `unrelated` right
    ones of others (k in arXiv 2411.00204). copies: times each fact is told, in other company; lines: facts in a document of
    right ones. Column spans: where a text tells something wrong, for 'spans' batches.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        data: CorpusRef,
        about: Literal["truth", "corruption", "retained"] = "truth",
        selection: Selection = Selection(),
        copies: PositiveInt = 8,
        lines: PositiveInt = 6,
        unrelated: NonNegativeInt = 0,
    ) -> None:
        self.data, self.about, self.selection = data, about, selection
        self.copies, self.lines, self.unrelated = copies, lines, unrelated

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows, facts."""
        facts, seed = Facts.read(context.corpus(self.data), self.selection), self.selection.seed
        told = {"truth": facts.all, "retained": facts.retained, "corruption": facts.touched}[self.about]
        if self.about == "corruption":
            documents = list(corrupted_documents(facts, copies=self.copies, unrelated=self.unrelated, seed=seed))
        else:
            documents = list(true_documents(told, copies=self.copies, lines=self.lines, seed=seed))
        rows = [
            {"id": document.name, "text": document.text, "spans": [{"start": start, "end": end} for start, end in document.spans]}
            for document in documents
        ]
        table = pa.Table.from_pylist(rows, _SCHEMA)
        Corpus.write(context.folder / "corpus.lance", table.to_batches(), _SCHEMA, metadata={"kind": "text"})
        return {"rows": float(len(documents)), "facts": float(len(told))}
