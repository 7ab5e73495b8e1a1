"""Question and answer rows of three clearly different skills: sums, plays and programs.

Notable: everything follows from what is given: no randomness but hashes of the rows, so any two such stages agree on which row is
in which part, and parts have no row in common.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.noise import hashed_uniform
from tilth.registry import PositiveInt

Skill = Literal["addition", "prose", "code"]
Part = Literal["train", "probe", "test"]
_SHARES = {"train": (0.0, 0.8), "probe": (0.8, 0.9), "test": (0.9, 1.0)}
_SEED = 74  # of which sums and passages are drawn; the same for every run


@method("stage", "skills")
class Skills(Stage):
    """Rows id, skill, question, answer. addition: '37+58=' and '95', operands below `operands`; prose: a passage of `prose`, its
    first half (`passage` characters) the question, its second the answer; code: the same of the Python standard library's source.

    prose: a corpus with a column 'text'. part: 80 % of each skill's rows are for training, 10 % to probe with, 10 % to test.
    rows: the most of each skill in this part (None: all there are). passages: how many of prose and of code, over all parts.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        prose: CorpusRef,
        skills: list[Skill] | None = None,
        part: Part = "train",
        rows: PositiveInt | None = None,
        operands: PositiveInt = 100,
        passage: PositiveInt = 40,
        passages: PositiveInt = 8000,
    ) -> None:
        self.prose, self.skills, self.part, self.rows = prose, skills or ["addition", "prose", "code"], part, rows
        self.operands, self.passage, self.passages = operands, passage, passages

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows of each skill."""
        found: list[dict[str, str]] = []
        counts: dict[str, float] = {}
        for skill in self.skills:
            pairs = self.pairs(skill, context)
            start, stop = (round(share * len(pairs)) for share in _SHARES[self.part])
            order = np.argsort(hashed_uniform(_SEED, skill, np.arange(len(pairs))))[start:stop][: self.rows]
            counts[skill] = float(len(order))
            found += [
                {"id": f"{skill}-{number}", "skill": skill, "question": pairs[number][0], "answer": pairs[number][1]}
                for number in order.tolist()
            ]
        table = pa.Table.from_pylist(found)
        Corpus.write(context.folder / "corpus.lance", table.to_batches(), table.schema, metadata={"kind": "answers"})
        return counts

    def pairs(self, skill: Skill, context: Context) -> list[tuple[str, str]]:
        """All questions and answers of a skill, of every part."""
        if skill == "addition":
            return [(f"{one}+{other}=", str(one + other)) for one in range(self.operands) for other in range(self.operands)]
        texts = context.corpus(self.prose).table(["text"])["text"].to_pylist() if skill == "prose" else list(_library())
        found = []
        for text in texts:
            found += [
                (text[at : at + self.passage], text[at + self.passage : at + 2 * self.passage])
                for at in range(0, len(text) - 2 * self.passage, 2 * self.passage)
            ]
        pairs = [(question, answer) for question, answer in found if question.strip() and answer.strip()]
        if len(pairs) < 10:
            raise TilthError(f"there are {len(pairs)} passages of {skill}", hint="Give longer texts, or a shorter 'passage'.")
        rank = np.argsort(hashed_uniform(_SEED, f"{skill}-passages", np.arange(len(pairs))))[: self.passages]
        return [pairs[number] for number in np.sort(rank).tolist()]


def _library() -> Iterator[str]:
    """The modules directly in the standard library, without its packages; ASCII alone."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.isascii():
            yield text
