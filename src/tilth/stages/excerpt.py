"""A part of a long text, cut into pieces: one book of a library, one play of a collection."""

import re
from collections.abc import Iterator

import pyarrow as pa

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.registry import PositiveInt


@method("stage", "excerpt")
class Excerpt(Stage):
    """What lies between two places of the texts of `data`, as rows of about `characters` characters that end with a paragraph.

    begin, end: words as they stand in the text; the excerpt starts with the first `begin` and ends before the first `end` behind
    it. Without `begin` it starts with the text, without `end` it goes to the text's end, as it does in a text that has no `end`;
    some text must have one. Texts without `begin` give nothing.
    outside: everything but that, the text before and the text behind it.
    copies: times the excerpt is told, each time in longer pieces, so that rows cut from them begin at other words.
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        data: CorpusRef,
        begin: str | None = None,
        end: str | None = None,
        characters: PositiveInt = 1000,
        copies: PositiveInt = 1,
        outside: bool = False,
    ) -> None:
        self.data, self.begin, self.end, self.characters, self.copies = data, begin, end, characters, copies
        self.outside = outside
        if outside and begin is None and end is None:
            raise TilthError("nothing lies outside a whole text", where="excerpt.outside", hint="Give 'begin' or 'end'.")

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows, characters."""
        corpus = context.corpus(self.data)
        for mark in filter(None, (self.begin, self.end)):
            if not any(mark in text for text in _texts(corpus)):
                raise TilthError(f"no text of '{self.data}' holds {mark!r}", hint="Check its spelling, white space included.")
        lengths = [self.characters + copy * self.characters // 7 for copy in range(self.copies)]
        pieces = [
            piece for length in lengths for text in _texts(corpus) for part in self.parts(text) for piece in cut(part, length)
        ]
        if not pieces:
            raise TilthError(f"nothing of '{self.data}' lies where it is asked for", where="excerpt")
        table = pa.table({"id": [f"{number:06d}" for number in range(len(pieces))], "text": pieces})
        Corpus.write(context.folder / "corpus.lance", table.to_batches(), table.schema, metadata={"kind": "text"})
        return {"rows": float(len(pieces)), "characters": float(sum(map(len, pieces)))}

    def parts(self, text: str) -> list[str]:
        """The excerpt of one text, in one part or (outside) two; empty where `begin` does not stand in it."""
        start = text.find(self.begin) if self.begin is not None else 0
        if start < 0:
            return []
        stop = text.find(self.end, start + len(self.begin or "")) if self.end is not None else -1
        stop = len(text) if stop < 0 else stop
        return [text[:start], text[stop:]] if self.outside else [text[start:stop]]


def cut(text: str, characters: int) -> list[str]:
    """The text in pieces that end with a paragraph, each the shortest of at least `characters` characters (the last may be shorter)."""
    pieces, length = [[""]], 0
    for paragraph in filter(None, (part.strip("\n") for part in re.split(r"\n\s*\n", text))):
        if length >= characters:
            pieces.append([])
            length = 0
        pieces[-1].append(paragraph)
        length += len(paragraph)
    return [whole for whole in ("\n\n".join(filter(None, piece)) for piece in pieces) if whole.strip()]


def _texts(corpus: Corpus) -> Iterator[str]:
    for batch in corpus.scan(["text"]):
        yield from (text for text in batch.column(0).to_pylist() if text)
