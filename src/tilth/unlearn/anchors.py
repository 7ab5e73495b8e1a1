"""Anchored terms: expressions that belong to one text (names, places, invented words), each with a generic counterpart.

Notable: a term is matched as words, so it is found however a tokeniser spaced them; the longest term wins; a name in
capitals is met by its counterpart in capitals; terms come from a file or are mined by how much more often a capitalised word
stands in what is to go than in what is to stay.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tilth.errors import TilthError

_PARTS = re.compile(r"\w+|[^\w\s]")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_ALWAYS_CAPITALISED = 0.9  # share of a word's occurrences: below it, a capital only says that a sentence begins
_USUAL = 10.0  # the highest ratio asked of counterparts: a stricter one for the terms should not leave few of them
_OFTEN = 0.25  # share of a name's occurrences: a capitalised word that stands in front of it that often is part of the name


@dataclass(frozen=True)
class Match:
    """text[start:end] is `term` in some case; replacement: its counterpart in that case."""

    start: int
    end: int
    term: str
    replacement: str


class Anchors:
    """terms: expression -> generic counterpart. Found as written, in capitals and with a first capital.

    boundaries: only whole words ('Ron' is not in 'Ronald').
    """

    def __init__(self, terms: Mapping[str, str], *, boundaries: bool = True) -> None:
        empty = next((term for term, counterpart in terms.items() if not _PARTS.findall(term) or not counterpart.strip()), None)
        if empty is not None:
            raise TilthError(f"the dictionary entry {empty!r} has an empty term or counterpart")
        self.terms = dict(terms)
        self.written: dict[str, tuple[str, str]] = {}
        for change in (str, str.upper, _capitalised):  # as written first: it wins where two terms differ in case alone
            for term, counterpart in self.terms.items():
                self.written.setdefault(" ".join(_PARTS.findall(change(term))), (term, change(counterpart)))
        longest_first = sorted(
            {change(term) for change in (str, str.upper, _capitalised) for term in terms}, key=len, reverse=True
        )
        either = "|".join(map(_flexible, longest_first))
        self.pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)" if boundaries else either) if terms else None

    def find(self, text: str) -> list[Match]:
        """All occurrences, in order; they do not overlap, and at each place the longest term is taken."""
        if self.pattern is None:
            return []
        found = []
        for match in self.pattern.finditer(text):
            term, counterpart = self.written[" ".join(_PARTS.findall(match.group()))]
            found.append(Match(match.start(), match.end(), term, counterpart))
        return found

    def translate(self, text: str) -> str:
        """The text with every term replaced."""
        parts, done = [], 0
        for match in self.find(text):
            parts += [text[done : match.start], match.replacement]
            done = match.end
        return "".join([*parts, text[done:]])


def load_anchors(path: str | Path) -> dict[str, str]:
    """A JSON or YAML file that maps terms to counterparts."""
    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TilthError(f"the dictionary cannot be read: {str(error).splitlines()[0]}", where=str(path)) from error
    if not isinstance(said, dict) or not all(isinstance(side, str) for pair in said.items() for side in pair):
        raise TilthError(
            "the dictionary is not a mapping from terms to counterparts",
            where=str(path),
            hint='Write {"Hogwarts": "Mystic Academy"}.',
        )
    return said


def mine_anchors(
    forget: Sequence[str], retain: Iterable[str], *, most: int, ratio: float = 10.0, at_least: int = 3, titles: bool = False
) -> dict[str, str]:
    """Names that belong to `forget`, each with a name that is usual in `retain`; the most frequent first, at most `most`.

    A name is a word written with a capital nearly always. It belongs to a side when its relative frequency there is at least
    `ratio` times that on the other side (one occurrence is added there) and it occurs at least `at_least` times. Names are
    paired by rank. titles: a name with what often stands in front of it ('Friar Laurence') is a term besides the name alone, with
    the same counterpart: otherwise the title still tells the name. Deviates from arXiv 2310.02238, where a language model lists
    the terms and invents the counterparts.
    """
    going, staying = Counter(_words(forget)), Counter(_words(retain))
    forms = {word: Counter[str]() for word in {form.lower() for form in (*going, *staying)}}
    for form, count in (going + staying).items():
        forms[form.lower()][form] += count
    names = {word for word, written in forms.items() if _share(written) >= _ALWAYS_CAPITALISED}
    theirs, ours = (
        _belonging(going, staying, names, ratio, at_least),
        _belonging(staying, going, names, min(ratio, _USUAL), at_least),
    )
    terms = [_usual(forms[word]) for word in theirs[:most]]
    counterparts = [_usual(forms[word]) for word in ours]
    if not counterparts:
        return {}
    alone = {term: counterparts[rank % len(counterparts)] for rank, term in enumerate(terms)}
    return alone | (_titled(forget, alone, at_least) if titles else {})


def _titled(texts: Iterable[str], alone: Mapping[str, str], at_least: int) -> dict[str, str]:
    """'Title Name' -> the name's counterpart, for names a capitalised word often stands in front of."""
    by_word = {term.lower(): term for term in alone}
    total, behind = Counter[str](), Counter[tuple[str, str]]()
    for text in texts:
        before: re.Match[str] | None = None
        for match in _WORDS.finditer(text):
            if name := by_word.get(match.group().lower()):
                total[name] += 1
                if before and before.group()[0].isupper() and text[before.end() : match.start()] == " ":
                    behind[before.group().capitalize(), name] += 1
            before = match
    often = (pair for pair, count in behind.items() if count >= max(at_least, _OFTEN * total[pair[1]]))
    return {f"{title} {name}": alone[name] for title, name in sorted(often)}


def _belonging(here: Counter[str], there: Counter[str], names: set[str], ratio: float, at_least: int) -> list[str]:
    """Names that belong to `here`, most frequent first, ties alphabetically."""
    ours, theirs = _lowered(here), _lowered(there)
    all_ours, all_theirs = max(1, here.total()), max(1, there.total())
    found = [
        word
        for word, count in ours.items()
        if word in names and count >= at_least and count / all_ours >= ratio * (theirs[word] + 1) / all_theirs
    ]
    return sorted(found, key=lambda word: (-ours[word], word))


def _words(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        yield from _WORDS.findall(text)


def _lowered(words: Counter[str]) -> Counter[str]:
    found = Counter[str]()
    for word, count in words.items():
        found[word.lower()] += count
    return found


def _share(written: Counter[str]) -> float:
    return sum(count for form, count in written.items() if form[0].isupper()) / written.total()


def _usual(written: Counter[str]) -> str:
    """The form a name is written in most often; capitals alone become a first capital."""
    form = max(written, key=lambda form: (not form.isupper(), written[form], form))
    return form.capitalize() if form.isupper() else form


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _flexible(term: str) -> str:
    """A pattern for the term's words and marks, with any white space where it has some."""
    pieces, last = [], 0
    for part in _PARTS.finditer(term):
        if part.start() and last:
            pieces.append(r"\s+" if part.start() > last else r"\s*")
        pieces.append(re.escape(part.group()))
        last = part.end()
    return "".join(pieces)
