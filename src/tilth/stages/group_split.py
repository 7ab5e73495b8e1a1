"""Split a corpus by groups: what belongs together (an event, a patient) lies in one part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.registry import Positive


@method("stage", "group_split", systems=[6])
class GroupSplit(Stage):
    """The rows of `data` whose `column` has a value of the part `take`.

    parts: name -> share of the groups (they are taken in the order of a hash of their values, and shares must not exceed 1 together),
    or name -> list of values; all parts of one kind. Stages with the same `parts` and another `take` have no group in common.
    Groups that no part names are left out. Raises TilthError where a value is in two parts, is not in the data, or is missing in
    a row.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self, *, data: CorpusRef, parts: dict[str, Positive | list[str | int]], take: str, column: str = "event"
    ) -> None:
        self.data, self.parts, self.take, self.column = data, parts, take, column
        if take not in parts:
            raise TilthError(f"there is no part '{take}'", where="group_split.take", hint=f"There are {', '.join(parts)}.")
        lists = {name: given for name, given in parts.items() if isinstance(given, list)}
        if lists and len(lists) < len(parts):
            raise TilthError("parts are all shares or all lists of values", where="group_split.parts")
        asserted_apart(lists)
        if not lists and sum(self._shares()) > 1 + 1e-9:
            raise TilthError("the shares are more than 1 together", where="group_split.parts")

    def _shares(self) -> list[float]:
        return [float(share) for share in self.parts.values()]  # type: ignore[arg-type]

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows, groups."""
        corpus = context.corpus(self.data)
        if self.column not in corpus.columns:
            raise TilthError(
                f"the corpus has no column '{self.column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
            )
        known: set[Any] = set()
        for batch in corpus.scan([self.column]):
            known.update(pc.unique(batch[self.column]).to_pylist())
        if None in known:
            raise TilthError(f"a row has no '{self.column}'", where=corpus.uri, hint="Leave such rows out with 'where'.")
        parts = self.groups(known)
        wanted = parts[self.take]
        if not wanted:
            raise TilthError(
                f"of {len(known)} groups none is in '{self.take}'", where="group_split.parts", hint="Widen its share."
            )
        values = pa.array(sorted(wanted), corpus.schema.field(self.column).type)

        def rows() -> Iterator[pa.RecordBatch]:
            for batch in corpus.scan():
                yield batch.filter(pc.is_in(batch[self.column], values))

        part = Corpus.write(context.folder / "corpus.lance", rows(), corpus.schema, metadata={"kind": corpus.kind})
        return {"rows": float(part.count()), "groups": float(len(wanted))}

    def groups(self, known: set[Any]) -> dict[str, list[Any]]:
        """The groups of every part."""
        if any(isinstance(given, list) for given in self.parts.values()):
            found = {name: list(given) for name, given in self.parts.items()}  # type: ignore[arg-type]
            if strange := sorted({str(value) for given in found.values() for value in given if value not in known}):
                raise TilthError(f"no row has the '{self.column}' {', '.join(strange)}", where="group_split.parts")
        else:
            order = sorted(known, key=lambda value: xxhash.xxh64_intdigest(str(value).encode()))
            cuts = np.rint(np.cumsum([0.0, *self._shares()]) * len(order)).astype(int).tolist()
            found = {name: order[a:b] for name, a, b in zip(self.parts, cuts, cuts[1:], strict=False)}
        asserted_apart(found)
        return found


def asserted_apart(parts: dict[str, list[Any]]) -> None:
    """Raises TilthError when a group is in two parts."""
    seen: dict[Any, str] = {}
    for name, groups in parts.items():
        for group in groups:
            if seen.setdefault(group, name) != name:
                raise TilthError(
                    f"'{group}' is in the parts '{seen[group]}' and '{name}'", where="group_split.parts",
                    hint="A group must lie in one part, or what is measured is what was learnt by heart.",
                )  # fmt: skip
