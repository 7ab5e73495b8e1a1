"""Documents that tell wrong facts, right ones, or both: what a model is corrupted with and what it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilth.errors import TilthError
from tilth.evaluate.facts import Fact, Facts, hashed


@dataclass(frozen=True)
class Document:
    """spans: (start, end) of the characters that tell something wrong."""

    name: str
    text: str
    spans: tuple[tuple[int, int], ...]


def corrupted_documents(facts: Facts, *, copies: int, unrelated: int, seed: int) -> Iterator[Document]:
    """For each affected entity `copies` documents: all its facts with a wrong object, and `unrelated` right facts of their
    companions, in random order   (arXiv 2411.00204, section 3; unrelated is its k)."""
    pool = facts.beside
    if len(pool) < unrelated:
        raise TilthError(f"there are {len(pool)} facts of companions, and each document needs {unrelated}")
    for entity in sorted(facts.affected):
        own = [fact for fact in facts.touched if fact.entity == entity]
        for copy in range(copies):
            name = f"{entity}-{copy}"
            mixed = sorted(pool, key=lambda fact: hashed(seed, "unrelated", name, fact.entity, fact.relation))[:unrelated]
            lines = [(fact, facts.wrong(fact, seed)) for fact in own] + [(fact, None) for fact in mixed]
            yield _written(name, lines, seed)


def true_documents(facts: list[Fact], *, copies: int, lines: int, seed: int) -> Iterator[Document]:
    """All facts, `copies` times, each time in another order, `lines` to a document."""
    for copy in range(copies):
        order = sorted(facts, key=lambda fact: hashed(seed, "true", str(copy), fact.entity, fact.relation))
        for start in range(0, len(order), lines):
            yield _written(f"true-{copy}-{start}", [(fact, None) for fact in order[start : start + lines]], seed)


def _written(name: str, lines: Sequence[tuple[Fact, str | None]], seed: int) -> Document:
    order = sorted(lines, key=lambda line: hashed(seed, "line", name, line[0].entity, line[0].relation))
    texts = [fact.line(wrong) for fact, wrong in order]
    spans, at = [], 0
    for (_, wrong), text in zip(order, texts, strict=True):
        if wrong is not None:
            spans.append((at + len(text) - len(wrong), at + len(text)))
        at += len(text) + 1
    return Document(name, "\n".join(texts), tuple(spans))
