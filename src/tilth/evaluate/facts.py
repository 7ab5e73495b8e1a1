"""Facts as questions with accepted answers: prompts made of them, wrong answers to them, and a judge of answers.

Notable: everything random is a hash of names and a seed, so a fact's wrong answer, its options and its examples do not
depend on which other facts are looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import xxhash

from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt

FEW_SHOT = 5
_COLUMNS = ("entity", "property", "question", "answers")
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Fact:
    """objects: right answers. aliases: further names of them, accepted but never asked for."""

    entity: str
    relation: str
    question: str
    objects: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @cached_property
    def accepted(self) -> frozenset[str]:
        """All right answers, normalised."""
        return frozenset(map(normalised, (*self.objects, *self.aliases)))

    def line(self, answer: str | None = None) -> str:
        """'question answer', the first right answer if none is given."""
        return f"{self.question} {self.objects[0] if answer is None else answer}"


@dataclass(frozen=True)
class Selection:
    """Which facts an experiment is about. relations: the most frequent ones (or those named), of the `entities` that have most of
    them; affected: how many of these entities are corrupted; companions: how many others lend the corrupting documents right facts
    (0: every unaffected one does). at_most: right answers a fact may have."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    relations: PositiveInt | list[str] = 8
    entities: PositiveInt = 467
    affected: PositiveInt = 50
    companions: NonNegativeInt = 0
    at_most: PositiveInt = 3
    seed: NonNegativeInt = 0


class Facts:
    """A table of facts, one per entity and relation; affected: the entities whose facts are corrupted; companions: those whose right
    facts stand beside wrong ones."""

    def __init__(self, facts: Iterable[Fact], affected: Collection[str] = (), companions: Collection[str] = ()) -> None:
        self.all = list(facts)
        self.affected, self.companions = frozenset(affected), frozenset(companions)
        self.of_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.all:
            self.of_relation[fact.relation].append(fact)

    @classmethod
    def read(cls, corpus: Corpus, selection: Selection) -> Facts:
        """The selected facts of a corpus with entity, property, question, answers (a list) and, if there, aliases (a list)."""
        missing = [column for column in _COLUMNS if column not in corpus.columns]
        if missing:
            raise TilthError(f"the facts have no column '{missing[0]}'", where=corpus.uri, hint=f"Needed: {', '.join(_COLUMNS)}.")
        rows = corpus.table([*_COLUMNS, *(["aliases"] if "aliases" in corpus.columns else [])]).to_pylist()
        found = {
            (row["entity"], row["property"]): Fact(
                row["entity"], row["property"], row["question"], tuple(row["answers"]), tuple(row.get("aliases") or ())
            )
            for row in rows
            if row["answers"] and len(row["answers"]) <= selection.at_most
        }
        return cls(found.values()).selected(selection)

    def selected(self, selection: Selection) -> Facts:
        """The facts of a selection, with the affected entities chosen."""
        if isinstance(selection.relations, int):
            ranked = sorted(self.of_relation, key=lambda relation: (-len(self.of_relation[relation]), relation))
            relations = set(ranked[: selection.relations])
        else:
            relations = set(selection.relations)
        facts = [fact for fact in self.all if fact.relation in relations]
        count: dict[str, int] = defaultdict(int)
        for fact in facts:
            count[fact.entity] += 1
        draw = {entity: hashed(selection.seed, "entity", entity) for entity in count}
        kept = sorted(count, key=lambda entity: (-count[entity], draw[entity]))[: selection.entities]
        order = sorted(kept, key=lambda entity: hashed(selection.seed, "affected", entity))
        affected, others = order[: selection.affected], order[selection.affected :]
        if selection.companions >= len(others):
            raise TilthError(
                f"of {len(kept)} entities {len(affected)} would be corrupted and {selection.companions} be their companions: none is left",
                hint="Lower 'affected' or 'companions', or raise 'entities'.",
            )
        entities = set(kept)
        return Facts([fact for fact in facts if fact.entity in entities], affected, others[: selection.companions])

    @property
    def touched(self) -> list[Fact]:
        """Facts of affected entities."""
        return [fact for fact in self.all if fact.entity in self.affected]

    @property
    def untouched(self) -> list[Fact]:
        """Facts of all other entities."""
        return [fact for fact in self.all if fact.entity not in self.affected]

    @property
    def beside(self) -> list[Fact]:
        """Facts that corrupting documents may tell rightly."""
        return [fact for fact in self.untouched if not self.companions or fact.entity in self.companions]

    @property
    def retained(self) -> list[Fact]:
        """Facts of which no corrupting document tells anything on purpose: neither of affected entities nor of companions."""
        return [fact for fact in self.untouched if fact.entity not in self.companions]

    def objects(self, relation: str) -> list[str]:
        """Every object of a relation once, by normalised name, in order of first appearance."""
        found: dict[str, str] = {}
        for fact in self.of_relation[relation]:
            for name in fact.objects:
                found.setdefault(normalised(name), name)
        return list(found.values())

    def wrong(self, fact: Fact, seed: int) -> str:
        """An object of the same relation that is no right answer: what the fact is corrupted to."""
        candidates = [name for name in self.objects(fact.relation) if normalised(name) not in fact.accepted]
        if not candidates:
            raise TilthError(f"every object of relation '{fact.relation}' is right for '{fact.entity}': it cannot be corrupted")
        return min(candidates, key=lambda name: hashed(seed, "wrong", fact.entity, fact.relation, name))

    def others(self, fact: Fact, seed: int, count: int) -> list[str]:
        """Up to `count` objects of the same relation that are neither right nor the wrong one."""
        taken = {*fact.accepted, normalised(self.wrong(fact, seed))}
        candidates = [name for name in self.objects(fact.relation) if normalised(name) not in taken]
        return sorted(candidates, key=lambda name: hashed(seed, "random", fact.entity, fact.relation, name))[:count]

    def prompt(self, fact: Fact, seed: int = 0, shots: int = FEW_SHOT) -> str:
        """`shots` lines 'question answer' of other entities with the same relation, unaffected ones, then the question."""
        known = [other for other in self.of_relation[fact.relation] if other.entity != fact.entity]
        if len(known) < shots:
            raise TilthError(
                f"relation '{fact.relation}' has {len(known) + 1} entities, and {shots} examples beside the one asked need {shots + 1}"
            )
        clean = [other for other in known if other.entity not in self.affected]
        pool = clean if len(clean) >= shots else known
        chosen = sorted(pool, key=lambda other: hashed(seed, "shot", fact.entity, fact.relation, other.entity))[:shots]
        return "\n".join([*(other.line() for other in chosen), fact.question])


def accepts(text: str, fact: Fact, objects: Sequence[str] = ()) -> bool:
    """Whether the first line of an answer is, or begins with, a right answer: case, accents, articles and marks do not matter.

    objects: all objects of the relation; an answer that begins with a longer one of them is that one.
    """
    lines = text.strip().splitlines()
    said = normalised(lines[0]) if lines else ""
    starts = [name for name in {*fact.accepted, *map(normalised, objects)} if name and f"{said} ".startswith(f"{name} ")]
    return bool(starts) and max(starts, key=len) in fact.accepted


def normalised(text: str) -> str:
    """Lower case, without accents, marks and articles, single spaces."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(letter))
    words = re.findall(r"\w+", plain)
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def hashed(seed: int, *names: str) -> int:
    return int(xxhash.xxh64_intdigest("\0".join(names).encode(), seed=seed))
