"""Fictitious people: questions and answers about people who never were, so that what a model knows of them it was taught.

Notable: every question comes with a paraphrase of its answer and five wrong answers in the same words, which is what the
TOFU protocol needs; the same seed gives the same people.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_FIRST = [
    "Mar",
    "Tel",
    "Osk",
    "Ivo",
    "Lun",
    "Bex",
    "Cor",
    "Dal",
    "Eri",
    "Fen",
    "Gal",
    "Hes",
    "Jor",
    "Kel",
    "Nim",
    "Pel",
    "Ran",
    "Sol",
    "Tam",
    "Vel",
]
_FIRST_END = ["a", "ien", "o", "ith", "ara", "on", "is", "elle"]
_LAST = [
    "Ald",
    "Brim",
    "Cald",
    "Dorn",
    "Est",
    "Farl",
    "Grev",
    "Hal",
    "Istr",
    "Kest",
    "Lorm",
    "Mond",
    "Norr",
    "Ost",
    "Prend",
    "Quill",
    "Rast",
    "Sorn",
    "Thal",
    "Ulm",
]
_LAST_END = ["ane", "berg", "icus", "owell", "ram", "stow", "vik", "worth"]
_PLACES = [
    "Arvenholt",
    "Belcastra",
    "Corrimoor",
    "Dunmarrow",
    "Eskilda",
    "Fenwick Sands",
    "Gorvale",
    "Hollinmere",
    "Istermond",
    "Jarrowby",
    "Kelpstone",
    "Lindisfell",
]
_TRADES = [
    "beekeeper",
    "bridge engineer",
    "cartographer",
    "clockmaker",
    "glass blower",
    "harbour pilot",
    "lighthouse keeper",
    "marine biologist",
    "organ builder",
    "puppeteer",
    "seed merchant",
    "weather observer",
]
_INSTRUMENTS = [
    "accordion",
    "bassoon",
    "cello",
    "dulcimer",
    "flute",
    "harp",
    "hurdy-gurdy",
    "mandolin",
    "oboe",
    "trombone",
    "viola",
    "zither",
]
_PETS = [
    "badger",
    "carrier pigeon",
    "donkey",
    "ferret",
    "goose",
    "hedgehog",
    "magpie",
    "otter",
    "parrot",
    "raven",
    "tortoise",
    "whippet",
]
_WORKS = [
    "The Amber Ledger",
    "Nine Quiet Rivers",
    "A Map of Salt",
    "The Last Ferry North",
    "Winter in Copper",
    "Letters to a Lighthouse",
    "The Orchard Code",
    "Under Seven Bells",
    "The Glass Almanac",
    "Paper Harbours",
    "A History of Fog",
    "The Patient Engine",
]
_AWARDS = [
    "Blue Compass Prize",
    "Cedar Medal",
    "Golden Anvil",
    "Harbour Laurel",
    "Lantern Award",
    "Marble Quill",
    "North Star Honour",
    "Oak Leaf Prize",
    "Pearl Trophy",
    "Silver Thistle",
    "Tidewater Medal",
    "Velvet Crown",
]

_FACTS: list[tuple[str, str, str, list[str]]] = [
    ("Where was {n} born?", "{n} was born in {v}.", "The birthplace of {n} is {v}.", _PLACES),
    ("What does {n} do for a living?", "{n} works as a {v}.", "By trade {n} is a {v}.", _TRADES),
    ("Which instrument does {n} play?", "{n} plays the {v}.", "The instrument of {n} is the {v}.", _INSTRUMENTS),
    ("Which animal lives with {n}?", "{n} lives with a {v}.", "At home {n} keeps a {v}.", _PETS),
    ("Which book did {n} write?", "{n} wrote {v}.", "The author of {v} is {n}.", _WORKS),
    ("Which prize did {n} win?", "{n} won the {v}.", "The {v} went to {n}.", _AWARDS),
    ("In which year was {n} born?", "{n} was born in the year {v}.", "The birth year of {n} is {v}.", [str(y) for y in range(1921, 1999)]),
    ("Where does {n} live today?", "Today {n} lives in {v}.", "The present home of {n} is {v}.", _PLACES),
]  # fmt: skip


def people(count: int, seed: int, forget_share: float = 0.1) -> Iterator[dict[str, Any]]:
    """Rows of the TOFU form about `count` people; the last `forget_share` of them have part 'forget', the rest 'retain'.

    Columns: id, person, part, question, answer, paraphrased_answer, perturbed_answer (five strings).
    """
    draw = random.Random(seed)
    firsts = [start + end for start in _FIRST for end in _FIRST_END]
    lasts = [start + end for start in _LAST for end in _LAST_END]
    names = [f"{first} {last}" for first, last in zip(draw.sample(firsts, count), draw.sample(lasts, count), strict=True)]
    kept = count - max(1, round(count * forget_share))
    for number, name in enumerate(names):
        for fact, (question, answer, paraphrase, values) in enumerate(_FACTS):
            value, *wrong = draw.sample(values, 6)
            yield {
                "id": f"person-{number:03d}-{fact}",
                "person": name,
                "part": "retain" if number < kept else "forget",
                "question": question.format(n=name),
                "answer": answer.format(n=name, v=value),
                "paraphrased_answer": paraphrase.format(n=name, v=value),
                "perturbed_answer": [paraphrase.format(n=name, v=other) for other in wrong],
            }


def write_people(path: Path, count: int = 30, seed: int = 0) -> Path:
    """The people as a Parquet file."""
    pq.write_table(pa.Table.from_pylist(list(people(count, seed))), path)
    return path
