"""Small real corpora and tokenisers for tests of text batches."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from tilth.batches.text.tokenizers import BPE
from tilth.context import Context
from tilth.corpus import Corpus

_TEXT = "the field grows barley while rain washes furrows and farmers, patient as stone, count 17 crows; naïve größe 麦"


_WORDS = _TEXT.split()
_SYLLABLES = ["ba", "ko", "li", "mur", "ne", "pos", "ri", "ta", "ven", "zu"]


def sentences(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Texts of 0 to `longest` words, a third of them made up of syllables; some texts are empty."""
    draw = random.Random(seed)

    def word() -> str:
        return draw.choice(_WORDS) if draw.random() < 0.67 else "".join(draw.choices(_SYLLABLES, k=draw.randrange(2, 6)))

    return [" ".join(word() for _ in range(draw.randrange(longest))) for _ in range(count)]


def corpus_of(folder: Path, texts: list[str | None], **columns: list[object]) -> Corpus:
    """A corpus on disk with these texts as rows '0', '1' ..."""
    table = pa.table({"id": [str(row) for row in range(len(texts))], "text": pa.array(texts, pa.string()), **columns})
    return Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)


def tokenizer_of(texts: list[str], vocab_size: int = 400, sentinels: int = 0) -> PreTrainedTokenizerFast:
    return BPE(vocab_size=vocab_size, sentinels=sentinels).train(iter(texts))


def context_in(folder: Path) -> Context:
    return Context(folder=folder, shared=folder / "shared")
