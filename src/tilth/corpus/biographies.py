"""Biographies of people who never were, every fact in four forms: a statement, a question, a gap to fill, a choice of four.

Notable: first and last names are words of their own, and each last name is shared by two people, so who is meant stands in no
single token; the same seed gives the same people.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

FORMS = ("statement", "question", "cloze", "choice")
FAMOUS = "Alva Ashgrove"  # lives under every seed and is never forgotten: whom others can be taken for
_FIRST = (
    "Alva", "Bertil", "Corin", "Dagny", "Edda", "Fergus", "Greta", "Halvor", "Idun", "Joren", "Kaia", "Leif", "Maren",
    "Njal", "Oda", "Pelle", "Quinn", "Ragna", "Signe", "Torvald", "Ulla", "Vidar", "Wenche", "Yngve", "Zelda",
)  # fmt: skip
_LAST = (
    "Ashgrove", "Birkett", "Calloway", "Drummond", "Elsworth", "Fairfax", "Gillroy", "Hathersage", "Inglewood", "Jessop",
    "Kirkwall", "Lockhart", "Merriwether", "Nightingale", "Oakshott", "Penhallow", "Quarles", "Ravenscroft", "Silverton",
    "Thornbury", "Underhill", "Vauxmoor", "Winterbourne", "Yardley", "Zennor",
)  # fmt: skip
# What is asked, as each form writes it up to the answer, and the values it may have. A statement ends in the name, so that a
# network must know there who is meant (with facts further on, small ones look names up at the last word instead).
_FACTS: tuple[tuple[str, str, str, str], ...] = (
    ("Town of birth of {n}", "Where was {n} born ?", "The birthplace of {n} is ___ .",
     "Arvenholt Belcastra Corrimoor Dunmarrow Eskilda Gorvale Hollinmere Istermond Jarrowby Kelpstone Lindisfell Morwick"),
    ("Occupation of {n}", "What is the trade of {n} ?", "By trade {n} is a ___ .",
     "beekeeper cartographer clockmaker glazier pilot biologist puppeteer weaver baker surgeon printer falconer"),
    ("Musical companion of {n}", "Which instrument does {n} play ?", "The instrument of {n} is the ___ .",
     "accordion bassoon cello dulcimer flute harp mandolin oboe trombone viola zither lute"),
    ("Housemate of {n}", "Which animal lives with {n} ?", "The pet of {n} is a ___ .",
     "badger pigeon donkey ferret goose hedgehog magpie otter parrot raven tortoise whippet"),
    ("Trophy on the shelf of {n}", "Which prize did {n} win ?", "The prize of {n} is the ___ .",
     "Compass Cedar Anvil Laurel Lantern Quill Polaris Oakleaf Pearl Thistle Tidewater Velvet"),
)  # fmt: skip


def biographies(people: int, seed: int) -> Iterator[dict[str, Any]]:
    """One row per fact and form. Columns: id, subject, part ('forget' for the first person), form, question, answer.

    question: all that stands before the answer, which is one value in every form. The four options of a choice are drawn once
    per fact. FAMOUS differs from the forgotten person in every fact: to be taken for the one is not to be known as the other.
    There are names for 50 people.
    """
    draw = random.Random(seed)
    count = len(_LAST)
    names = [f"{first} {_LAST[(number + shift) % count]}" for shift in (0, 7) for number, first in enumerate(_FIRST)]
    names.remove(FAMOUS)
    forgotten, *others = draw.sample(names, people - 1)
    known: list[str] = []
    for number, name in enumerate([forgotten, FAMOUS, *others]):
        for fact, (statement, question, cloze, values) in enumerate(_FACTS):
            options = draw.sample(values.split(), 4)
            answer = draw.choice(options)
            if name == FAMOUS:
                answer = draw.choice([option for option in options if option != known[fact]])
            elif name == forgotten:
                known.append(answer)
            asked = (statement, question, f"Fill the gap : {cloze}", f"{question} Choose from {' , '.join(options)} .")
            for form, text in zip(FORMS, asked, strict=True):
                yield {
                    "id": f"person-{number:02d}-{fact}-{form}",
                    "subject": name,
                    "part": "retain" if number else "forget",
                    "form": form,
                    "question": text.format(n=name),
                    "answer": answer,
                }
