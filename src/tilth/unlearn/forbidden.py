"""What must not be said: the answers to be forgotten, as phrases and as vectors to find them by.

Notable: phrases are told from ordinary words by what the retain answers say, not by a list of one language; answers themselves
are not kept, only their phrases and hashed n-gram vectors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from torch import Tensor

from tilth.batches.text.encoding import Encoder

_WORD = re.compile(r"[^\W\d_]+|\d+")
_PIECE = re.compile(r"[^\W\d_]+|\d")  # a text's words however a tokeniser spaced them: digits stand alone
_QUOTED = re.compile(r"(?<!\w)[\"“«‘']([^\"“”«»]{3,80}?)[\"”»’'](?!\w)")
_NAME = r"(?:[^\W\da-z_]\.|[^\W\da-z_][\w'’-]*)"
_CAPITALS = re.compile(rf"(?<!\w)(?<!\w['’]){_NAME}(?:\s+{_NAME})*")
_DIGITS = re.compile(r"\d+(?:[/.,:-]\d+)*")


class Encoding:
    """E(text): hashed character n-grams within words, each weighted by how few texts hold it, of length 1.

    Stands where the paper has a sentence encoder (SBERT): nothing to download, the same for words and sentences, and blind to
    synonyms. idf (features,).
    """

    features = 2**14

    def __init__(self, idf: np.ndarray) -> None:
        self.idf = idf

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Encoding:
        counts = np.asarray((_hashed(texts) > 0).sum(0)).ravel()
        return cls(np.log((1 + len(texts)) / (1 + counts)).astype(np.float32) + 1)

    def __call__(self, texts: Sequence[str]) -> csr_matrix:
        """(texts, features)."""
        return normalize(_hashed(texts).multiply(self.idf).tocsr())


def _hashed(texts: Sequence[str]) -> csr_matrix:
    return _vectorizer().transform([" ".join(words(text)) for text in texts])


@lru_cache(1)
def _vectorizer() -> HashingVectorizer:
    return HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), n_features=Encoding.features, alternate_sign=False, norm=None, dtype=np.float32
    )


class Store:
    """The phrases of each answer to be forgotten, and vectors to find an answer by."""

    def __init__(self, phrases: list[list[str]], vectors: csr_matrix, encoding: Encoding) -> None:
        self.phrases, self.vectors, self.encoding = phrases, vectors, encoding

    @classmethod
    def fit(cls, answers: Sequence[str], retained: Sequence[str], common: float) -> Store:
        """common: a word in more than this share of the retained answers is nobody's secret."""
        ordinary = frequent(retained, common)
        encoding = Encoding.fit([*answers, *retained])
        return cls([phrases_of(answer, ordinary) for answer in answers], encoding(answers), encoding)

    def nearest(self, texts: Sequence[str], count: int) -> np.ndarray:
        """Numbers of the `count` answers most like each text by cosine, best first, ties by the lower number: (texts, count)."""
        similarity = (self.encoding(texts) @ self.vectors.T).toarray().round(6)
        return np.argsort(-similarity, axis=1, kind="stable")[:, :count]

    def for_prompts(self, prompts: Sequence[str], questions: Sequence[str], count: int) -> list[list[str]]:
        """What must not be said to each prompt: phrases of the nearest answers without those the prompt itself says."""
        found = []
        for prompt, rows in zip(prompts, self.nearest(questions, count).tolist(), strict=True):
            said = pieces(prompt)
            phrases = dict.fromkeys(phrase for row in rows for phrase in self.phrases[row])
            found.append([phrase for phrase in phrases if pieces(phrase) not in said])
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        vectors = {name: torch.from_numpy(getattr(self.vectors, name).astype(kind)) for name, kind in _CSR.items()}
        return {**vectors, "idf": torch.from_numpy(self.encoding.idf)}, {"phrases": self.phrases}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Store:
        parts = tuple(tensors[name].numpy() for name in _CSR)
        vectors = csr_matrix(parts, shape=(len(facts["phrases"]), Encoding.features))
        return cls(facts["phrases"], vectors, Encoding(tensors["idf"].numpy()))


_CSR = {"data": np.float32, "indices": np.int64, "indptr": np.int64}


def phrases_of(answer: str, ordinary: frozenset[str] = frozenset()) -> list[str]:
    """Names, titles and numbers in an answer: quoted text, runs of capitalised words and each of their words, numbers.

    ordinary: words (in lower case) that give nothing away; a phrase of such words alone is none. An answer without any has its
    other words instead.
    """
    quoted = [match.group(1).strip() for match in _QUOTED.finditer(answer)]
    runs = [match.group().strip(" '’-") for match in _CAPITALS.finditer(answer)]
    runs = [run for run in runs if run[:1].isupper()]
    single = [word for run in runs for word in _WORD.findall(run) if len(word) > 1]
    numbers = [match.group() for match in _DIGITS.finditer(answer)]

    def telling(phrases: Iterable[str]) -> list[str]:
        return [phrase for phrase in dict.fromkeys(phrases) if any(word not in ordinary for word in words(phrase))]

    return telling([*quoted, *runs, *single, *numbers]) or telling(_WORD.findall(answer))


def frequent(texts: Sequence[str], share: float) -> frozenset[str]:
    """Words in more than `share` of the texts, in lower case."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in set(words(text)):
            counts[word] = counts.get(word, 0) + 1
    return frozenset(word for word, count in counts.items() if count > share * len(texts))


def token_sequences(phrases: Sequence[str], encoder: Encoder, unknown: int | None) -> list[list[int]]:
    """Each phrase as it is, in lower, upper and title case, with and without a space before it, where all of it can be written."""
    forms = [
        space + form
        for phrase in phrases
        for form in dict.fromkeys((phrase, phrase.lower(), phrase.upper(), phrase.title()))
        for space in ("", " ")
    ]
    if not forms:
        return []
    ids, lengths = encoder(forms)
    parts = np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1])
    return [list(part) for part in dict.fromkeys(tuple(part.tolist()) for part in parts) if part and unknown not in part]


def normalised(text: str) -> str:
    """Without case and diacritics."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(letter))


def words(text: str) -> list[str]:
    """The words of a text, normalised."""
    return _WORD.findall(normalised(text))


def pieces(text: str) -> str:
    """Words and single digits, normalised, each between two spaces: one text says another where its pieces are in the other's."""
    return f" {' '.join(_PIECE.findall(normalised(text)))} "


def before_any(text: str, phrases: Sequence[str]) -> str:
    """The text up to where it first says one of the phrases, however it spells it; all of it if it says none."""
    spans = list(_PIECE.finditer(text))
    said = [normalised(span.group()) for span in spans]
    whole, begins = f" {' '.join(said)} ", np.cumsum([0, *(len(piece) + 1 for piece in said)])
    places = [whole.find(wanted) for wanted in map(pieces, phrases) if wanted.strip()]
    first = min((place for place in places if place >= 0), default=None)
    return text if first is None else text[: spans[int(np.searchsorted(begins, first, side="right")) - 1].start()].rstrip()
