"""Make a corpus of fictitious biographies in several forms: what form-independence is tested on."""

from typing import Literal

import pyarrow as pa

from tilth.context import Context
from tilth.contracts import Stage, method
from tilth.corpus import Corpus
from tilth.corpus.biographies import FORMS, biographies
from tilth.errors import TilthError
from tilth.registry import PositiveInt


@method("stage", "biographies", systems=[53])
class Biographies(Stage):
    """Five facts about each of `people` (at most 50), each in the given forms: statement, question, cloze, choice.

    part: 'forget' is the first person, 'retain' the others. Each seed has people of its own.
    Columns: id, subject, part, form, question, answer.
    """

    gives = "corpus"

    def __init__(
        self,
        *,
        people: PositiveInt = 50,
        part: Literal["all", "forget", "retain"] = "all",
        forms: list[Literal["statement", "question", "cloze", "choice"]] = list(FORMS),  # type: ignore[arg-type]  # noqa: B006
    ) -> None:
        if not 2 <= people <= 50:
            raise TilthError(f"there are names for 2 to 50 people, not {people}", where="biographies.people")
        self.people, self.part, self.forms = people, part, forms

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows."""
        rows = [
            row
            for row in biographies(self.people, context.seed)
            if self.part in ("all", row["part"]) and row["form"] in self.forms
        ]
        table = pa.Table.from_pylist(rows)
        corpus = Corpus.write(context.folder / "corpus.lance", table.to_batches(), table.schema, metadata={"kind": "answers"})
        return {"rows": float(corpus.count())}
